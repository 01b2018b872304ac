"""What an Ended says to a client: nothing, or which error. Pure; the surface raises it, the dispatcher when no other worker may go on."""

from pagoda_router.errors import DeadlineExceeded, NoWorker, TokenTimeout, UpstreamFailed
from pagoda_router.generation import Ended, EndReason


def raise_failure(ended: Ended) -> None:
    """Nothing for the ends that answer a request."""
    if ended.reason in (EndReason.STOP, EndReason.LENGTH):
        return
    if ended.reason is EndReason.DEADLINE:
        raise DeadlineExceeded(ended.detail or "the request's deadline passed: ask for fewer tokens or more time")
    if ended.reason is EndReason.TIMED_OUT:
        raise TokenTimeout(ended.detail)
    if ended.reason is EndReason.SHUTDOWN:
        raise NoWorker(ended.detail or "the worker shut down under this request: send it again")
    raise UpstreamFailed(ended.detail or "the worker was lost under this request: send it again")
