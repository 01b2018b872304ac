"""What the supervisor did and why: a bounded list for `pagoda describe`, each line also in the supervisor's log."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pagoda_operator.conditions import rfc3339

log = logging.getLogger("pagoda.events")
KEPT = 200


@dataclass(frozen=True, slots=True)
class Event:
    at: str
    """RFC 3339."""
    subject: str
    """A pod, or an object."""
    message: str


class Journal:
    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=KEPT)

    def tell(self, subject: str, message: str) -> None:
        self._events.append(Event(rfc3339(datetime.now(UTC)), subject, message))
        log.info("%s: %s", subject, message)

    def about(self, subjects: Sequence[str] | None = None) -> list[dict[str, str]]:
        """Oldest first; None: all."""
        return [asdict(event) for event in self._events if subjects is None or event.subject in subjects]
