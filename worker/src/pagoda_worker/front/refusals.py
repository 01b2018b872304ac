"""Which submits become requests and which are refused, and how that reads on the wire. Pure; asked by the switchboard before anything is
counted."""

from collections.abc import Collection
from dataclasses import dataclass

from pagoda_worker.errors import AdapterNotFound, ContextTooLong, NotImplementedYet, RequestRefused, WakeFailed
from pagoda_worker.facts import ModelFacts
from pagoda_worker.front.validation import to_request
from pagoda_worker.request import Request
from pagoda_worker.wire import worker_pb2 as pb

MAX_CALLS_PER_SESSION = 4096
CODES = {
    RequestRefused.__name__: pb.Refused.INVALID,
    ContextTooLong.__name__: pb.Refused.CONTEXT_TOO_LONG,
    NotImplementedYet.__name__: pb.Refused.UNIMPLEMENTED,
    AdapterNotFound.__name__: pb.Refused.MODEL_NOT_FOUND,
    WakeFailed.__name__: pb.Refused.NOT_READY,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides beside the submit itself."""

    model: str
    draining: bool
    closed_reason: str
    """Why new requests are not welcome; empty when they are."""
    open_calls: int
    """Of this session."""
    fits_credits: bool
    adapters: Collection[str] = ()
    """Names that may be asked for."""


def judge(submit: pb.Submit, engine_id: str, standing: Standing, facts: ModelFacts | None) -> Request | pb.Refused:
    """`engine_id`: what the request is to be called there. `facts` None: no engine has loaded yet, and `standing` says so."""
    refused = _refused_by_standing(submit, standing)
    if refused is not None:
        return refused
    assert facts is not None, "requests are welcome, so an engine has loaded"
    try:
        return to_request(submit, engine_id, facts)
    except RequestRefused as refusal:
        return refused_by_error(submit.request_id, type(refusal).__name__, str(refusal), refusal.param)


def _refused_by_standing(submit: pb.Submit, standing: Standing) -> pb.Refused | None:

    def refused(code: "pb.Refused.Code.ValueType", message: str, param: str = "") -> pb.Refused:
        return pb.Refused(request_id=submit.request_id, code=code, message=message, param=param)

    if submit.model != standing.model:
        return refused(pb.Refused.MODEL_NOT_FOUND, f"this worker serves {standing.model!r}, not {submit.model!r}", "model")
    if standing.closed_reason:
        return refused(pb.Refused.DRAINING if standing.draining else pb.Refused.NOT_READY, standing.closed_reason)
    if submit.adapter and submit.adapter not in standing.adapters:
        there = ", ".join(sorted(standing.adapters)) or "none"
        return refused(pb.Refused.MODEL_NOT_FOUND, f"there is no adapter {submit.adapter[:200]!r}; there is: {there}", "adapter")
    if standing.open_calls >= MAX_CALLS_PER_SESSION:
        return refused(pb.Refused.OVERLOADED, f"this session has {standing.open_calls} requests open; the limit is {MAX_CALLS_PER_SESSION}")
    if not standing.fits_credits:
        return refused(
            pb.Refused.OVERLOADED,
            f"{submit.reserved_kv_tokens} more tokens do not fit this session's credits: wait for a grant",
            "reserved_kv_tokens",
        )
    return None


def refused_by_error(request_id: int, error: str, message: str, param: str) -> pb.Refused:
    """`error`: name of a class in errors.py."""
    return pb.Refused(request_id=request_id, code=CODES.get(error, pb.Refused.INVALID), message=message, param=param)
