"""What a model asks of its routers, `spec.routing`: parsed, without I/O.

Called by `spec.parse` with values that are known to be right. Routers read the same fields from the object themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda_operator.manifest.given import given
from pagoda_operator.manifest.quantities import parse_duration


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Routers read it from the object themselves."""

    draft_model: str | None = None
    """Name of the model whose workers draft for this one's. None: nobody does."""
    fallback: str | None = None
    """Name of the model that answers when this one cannot. None: none."""
    fallback_after_s: float = 10.0
    """How long a request waits for a worker of this one before that."""
    max_queue_tokens: int = 200_000
    """Tokens that may wait for this model before the router answers 429."""
    max_waiting: int = 256
    """Requests that each router holds while no worker of the model runs."""
    policy: str = "predicted"
    """How routers choose among its workers; they read it from the object themselves."""
    wake_timeout_s: float = 300.0
    """How long a request waits for a model that is being woken."""


def routing(written: Mapping[str, Any]) -> Routing:
    times: dict[str, Any] = {
        attribute: float(parse_duration(written[name]))
        for attribute, name in (("fallback_after_s", "fallbackAfter"), ("wake_timeout_s", "wakeTimeout"))
        if name in written
    }
    return Routing(
        **given(
            written,
            draft_model="draftModel",
            fallback="fallback",
            max_queue_tokens="maxQueueTokens",
            max_waiting="maxWaiting",
            policy="policy",
        ),
        **times,
    )
