"""What HTTP brought of one generation request, for whoever answers it. Plain data; app.py makes it."""

from collections.abc import Callable
from dataclasses import dataclass

from pagoda_router.generation import NOBODY, Sender
from pagoda_router.http.asgi import Headers
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ANYONE, ApiKey
from pagoda_router.openai.features import NO_WISHES, Wishes
from pagoda_router.tracing.record import RequestTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    body: bytes
    headers: Headers
    """Go onto the answer, with `applied`."""
    trace: RequestTrace
    outcome: RequestOutcome
    key: ApiKey = ANYONE
    """Whose request it is."""
    wants_trace: bool = False
    """In the answer."""
    wishes: Wishes = NO_WISHES
    takes_fallback: bool = True
    """Another model may answer when its own cannot."""
    sender: Sender = NOBODY
    variant: str | None = None
    """The one that the request must go to; known once its model is."""
    applied: Callable[[], tuple[bytes, bytes]] | None = None
    """One header more: what was done of the wishes. Made when the headers leave, since a variant may be drawn as late as that."""

    def answer_headers(self) -> Headers:
        return self.headers if self.applied is None else [*self.headers, self.applied()]
