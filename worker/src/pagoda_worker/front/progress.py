"""Is the engine alive in the sense that matters: tokens move, or it is idle and answers. Pure; the supervisor brings messages and the time.

A long step is not a hang: with prompt tokens waiting, a step may take as long as the measured prefill rate says, with room to spare.
"""

from pagoda_worker.request import EngineState

SLOWER_THAN_MEASURED = 4.0
"""A step may take this many times what its tokens took before (attention grows with the context, neighbours share the cores)."""
FIRST_PREFILL_STALLS = 10.0
"""Before any rate is known (kernels load, caches warm), a prefill may take this many stall times."""
LONGEST_STEP_S = 600.0


class ProgressClock:
    """When tokens last moved, and how long they may stand still."""

    def __init__(self, *, stall_s: float, max_batch_tokens: int, now: float) -> None:
        self._stall_s = stall_s
        self._max_batch_tokens = max_batch_tokens
        self._moved_at = now
        self._tokens_total = -1
        self._pending_prefill_tokens = 0
        self._prefill_tokens_per_s = 0.0
        self._busy = False
        self._moves_weights = False

    def submitted(self, prompt_tokens: int) -> None:
        self._pending_prefill_tokens += prompt_tokens

    def moves_weights(self, now: float) -> None:
        """It falls asleep or wakes, and will say so when it has; there are no steps meanwhile."""
        self._moves_weights, self._moved_at = True, now

    def heard(self, state: EngineState, now: float) -> None:
        """A step or a heartbeat arrived."""
        self._moves_weights = False
        tokens_total = state.prompt_tokens_total + state.generation_tokens_total
        self._busy = state.num_running + state.num_waiting > 0
        if tokens_total != self._tokens_total or not self._busy:
            self._moved_at = now
        self._tokens_total = tokens_total
        self._pending_prefill_tokens = state.queued_prefill_tokens
        self._prefill_tokens_per_s = state.prefill_tokens_per_s

    def stalled_reason(self, now: float, *, times: float = 1.0) -> str | None:
        """A sentence when tokens stood still `times` as long as they may."""
        still_s = now - self._moved_at
        if still_s <= self._allowed_s() * times:
            return None
        if self._moves_weights:
            return f"the engine falls asleep or wakes and has said nothing for {still_s:.0f} s"
        if self._busy or self._pending_prefill_tokens:
            return f"the engine has work and no token moved for {still_s:.0f} s"
        return f"the idle engine has not answered for {still_s:.0f} s"

    def _allowed_s(self) -> float:
        if self._moves_weights:
            return LONGEST_STEP_S
        step_tokens = min(self._pending_prefill_tokens, self._max_batch_tokens)
        if step_tokens == 0:
            return self._stall_s
        if self._prefill_tokens_per_s <= 0.0:
            step_s = self._stall_s * FIRST_PREFILL_STALLS
        else:
            step_s = SLOWER_THAN_MEASURED * step_tokens / self._prefill_tokens_per_s
        return max(self._stall_s, min(step_s, LONGEST_STEP_S))


class Backoff:
    """How long to wait before the next start of an engine that died: doubling, forgotten after a healthy minute."""

    def __init__(self, *, first_s: float = 0.5, longest_s: float = 30.0, healthy_s: float = 60.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._healthy_s = healthy_s
        self._next_s = first_s

    def after(self, served_s: float) -> float:
        """The engine died after serving for `served_s`."""
        if served_s >= self._healthy_s:
            self._next_s = self._first_s
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, self._longest_s)
        return wait_s
