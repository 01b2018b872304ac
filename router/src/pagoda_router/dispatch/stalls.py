"""Gives up on workers that hang: streams that bring no first token, or no next one, for too long. Looks at all of them about once a second.

Costs a token nothing: streams count what arrives, and only here is a count held against the clock. The dispatcher owns it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pagoda_router.backends.base import BackendStream
from pagoda_router.generation import WorkerId

LONGEST_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class StageTimeouts:
    """Seconds. Connecting and a silent session have their own (backends/session_life.py, LinkTiming)."""

    first_token_s: float = 300.0
    """From a worker's having the request: its queue there, waking, prefill."""
    next_token_s: float = 60.0
    """Between two batches of tokens."""
    cut_off_s: float = 5.0
    """Instead of both, once its worker has stopped answering the router too. A server that is only busy still brings tokens."""


@dataclass(slots=True)
class _Seen:
    progress: int
    since_s: float
    is_cut_off: bool = False


class StallWatch:
    def __init__(self, timeouts: StageTimeouts, clock: Callable[[], float], on_stall: Callable[[BackendStream], None]) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._on_stall = on_stall
        self._look_s = min(LONGEST_LOOK_S, timeouts.first_token_s / 4, timeouts.next_token_s / 4, timeouts.cut_off_s / 4)
        self._seen: dict[BackendStream, _Seen] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: BackendStream) -> None:
        """A worker has it. It leaves by itself once nobody waits for it any more."""
        self._seen[stream] = _Seen(stream.progress, self._clock())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def cut_off(self, worker: WorkerId) -> None:
        """It has stopped answering, though its connections stand: what brings nothing more is not waited for."""
        for stream, seen in self._seen.items():
            seen.is_cut_off = seen.is_cut_off or stream.worker == worker

    def _look(self) -> None:
        self._timer = None
        self.review(self._clock())
        if self._seen:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def review(self, now_s: float) -> None:
        for stream, seen in list(self._seen.items()):
            if not stream.is_awaited:
                del self._seen[stream]
            elif stream.progress != seen.progress:
                seen.progress, seen.since_s, seen.is_cut_off = stream.progress, now_s, False
            elif (sentence := self._too_long(seen, now_s)) is not None:
                del self._seen[stream]
                stream.give_up(f"{stream.worker.partition('@')[0]} {sentence}: send the request again")
                self._on_stall(stream)

    def _too_long(self, seen: _Seen, now_s: float) -> str | None:
        silent_s = now_s - seen.since_s
        if seen.is_cut_off and silent_s >= self._timeouts.cut_off_s:
            return "stopped answering"
        kind, timeout_s = ("further", self._timeouts.next_token_s) if seen.progress else ("first", self._timeouts.first_token_s)
        return None if silent_s < timeout_s else f"gave no {kind} token within {timeout_s:g} s"
