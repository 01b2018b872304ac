"""What HTTP brought of one generation request, for whoever answers it. Plain data; app.py makes it."""

from collections.abc import Callable, Sequence
from dataclasses import field

from pagoda_router.generation import NOBODY, Dispatcher, Generation, Sender
from pagoda_router.http.asgi import Headers
from pagoda_router.http.cohort import Member, alone
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ANYONE, ApiKey
from pagoda_router.openai.features import NO_WISHES, Wishes
from pagoda_router.records import record
from pagoda_router.tracing.record import RequestTrace
from pagoda_router.usage.account import Account


@record(frozen=True, slots=True, kw_only=True)
class Call:
    body: bytes
    headers: Headers
    """Go onto the answer, with `applied`; reserving changes them."""
    trace: RequestTrace
    outcome: RequestOutcome
    account: Account
    """Of the key, for this request."""
    key: ApiKey = ANYONE
    """Whose request it is."""
    wants_trace: bool = False
    """In the answer."""
    wishes: Wishes = NO_WISHES
    takes_fallback: bool = True
    """Another model may answer when its own cannot."""
    sender: Sender = NOBODY
    member: Member = field(default_factory=alone)
    """Among those that came with it."""
    variant: str | None = None
    """The one that the request must go to; known once its model is."""
    applied: Callable[[], tuple[bytes, bytes]] | None = None
    """One header more: what was done of the wishes. Made when the headers leave, since a variant may be drawn as late as that."""

    fell_back: Headers = field(default_factory=list)
    """More of them: why another model answers than the one that was asked for."""

    def answer_headers(self) -> Headers:
        return [*self.headers, *self.fell_back, *([] if self.applied is None else [self.applied()])]

    async def reserve(self, generations: Sequence[Generation], dispatcher: Dispatcher) -> None:
        """Of the key's tokens and budget, for all of them or none. Raises RateLimited, LargerThanLimit, QuotaSpent."""
        prompt_tokens = sum([len(generation.prompt_ids) for generation in generations])
        await self.account.reserve(generations[0].model, prompt_tokens, lambda: sum(map(dispatcher.expected_output_tokens, generations)))
