"""What /ready answers, the same for the worker and the fetch step before it. Plain data; operators read it: its words are a contract.

200  {"ready": true, "capacity": {…}}, and "sleepLevel": 1 or 2 while the model sleeps: the next request wakes it
503  {"ready": false, "reason": one word, "message": one line, "progress": 0..1 | null, "bytesDone": n | null, "bytesTotal": n | null}
     and "engineFailures": n where that many engines in a row ended before they served
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal[
    "", "Loading", "WeightsDownload", "ModelNotFound", "OutOfMemory", "Stalled", "EngineCrash", "Draining", "DiskFull", "Unauthorized"
]


@dataclass(frozen=True, slots=True)
class Readiness:
    ready: bool
    reason: Reason = ""
    message: str = ""
    bytes_done: int | None = None
    bytes_total: int | None = None
    """None: what goes on is not counted in bytes."""
    engine_failures: int = 0
    """In a row, before they served."""
    capacity: Mapping[str, Any] | None = None
    sleep_level: int = 0

    @property
    def status(self) -> int:
        return 200 if self.ready else 503

    def body(self) -> dict[str, Any]:
        if self.ready:
            told: dict[str, Any] = {"ready": True}
            if self.sleep_level:
                told["sleepLevel"] = self.sleep_level
            return told if self.capacity is None else {**told, "capacity": dict(self.capacity)}
        failures = {"engineFailures": self.engine_failures} if self.engine_failures else {}
        return {
            "ready": False,
            "reason": self.reason,
            "message": " ".join(self.message.split()),
            "progress": share(self.bytes_done, self.bytes_total),
            "bytesDone": self.bytes_done,
            "bytesTotal": self.bytes_total,
            **failures,
        }


def share(done: int | None, total: int | None) -> float | None:
    """0 to 1 with four digits; None when nothing is counted."""
    return round(min(done / total, 1.0), 4) if done is not None and total else None
