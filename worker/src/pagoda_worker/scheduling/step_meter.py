"""How fast the engine is, learned from its own steps, and the EngineState that tells it with everything else.

Owns the counts and moving averages. Called by the engine after each step; knows neither tensors nor requests, and is given every time.
"""

from pagoda_worker.request import EngineState
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.policy import Speeds
from pagoda_worker.scheduling.prefill_cost import PrefillCost, StepCost
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.verification import DraftCounts

_SMOOTHING = 0.1
"""Weight of the newest step in the learned speeds."""


class StepMeter:
    def __init__(self) -> None:
        self.steps = 0
        """That computed something."""
        self._prefill_tokens_per_s = 0.0
        self._decode_step_ms = 0.0
        self._prefill_cost = PrefillCost()
        self._ended = 0.0
        """Of the last step settled: when two overlap, the second one's time begins where the first one's ended."""

    def start_from(self, *, prefill_tokens_per_s: float, decode_step_ms: float, chunk_tokens: int = 0) -> None:
        """Measured before the first step; 0: not known. `chunk_tokens`: of the prompt that told the rate."""
        self._prefill_tokens_per_s, self._decode_step_ms = prefill_tokens_per_s, decode_step_ms
        self._prefill_cost = PrefillCost()
        if prefill_tokens_per_s and decode_step_ms and chunk_tokens:
            chunk_ms = 1000 * chunk_tokens / prefill_tokens_per_s
            self._prefill_cost = PrefillCost(StepCost.measured(chunk_tokens, chunk_ms, decode_step_ms))

    def measure(self, plan: StepPlan, began: float, ended: float) -> float:
        """One more step is over. Seconds that it took by itself."""
        began, self._ended = max(began, self._ended), ended
        self.steps += not plan.empty
        elapsed = max(ended - began, 1e-9)
        decodes, prefill_tokens = plan.decode_tokens, plan.prefill_tokens
        if prefill_tokens:
            self._prefill_cost.observe(prefill_tokens, elapsed * 1e3, decodes=decodes)
        if prefill_tokens > decodes:  # else the step's time tells of decoding
            self._prefill_tokens_per_s = _smooth(self._prefill_tokens_per_s, prefill_tokens / elapsed)
        elif decodes and not plan.chunks:
            self._decode_step_ms = _smooth(self._decode_step_ms, elapsed * 1e3)
        return ended - began

    @property
    def prefill_token_s(self) -> float:
        """0: not known yet."""
        return 1 / self._prefill_tokens_per_s if self._prefill_tokens_per_s else 0.0

    def prompts_s(self, plan: StepPlan) -> float:
        """Of the step's time, what its prompts took."""
        cost = self._prefill_cost.learned
        return plan.prefill_tokens * cost.token_ms / 1e3 if cost else 0.0

    def speeds(self, copy_bytes_per_s: float) -> Speeds:
        return Speeds(prefill_tokens_per_s=self._prefill_tokens_per_s, copy_bytes_per_s=copy_bytes_per_s)

    def state(self, scheduler: Scheduler, now: float, *, sleep_level: int, drafts: DraftCounts) -> EngineState:
        totals, size, cost = scheduler.totals, scheduler.blocks.block_size, self._prefill_cost.learned
        return EngineState(
            step=self.steps,
            at_mono_us=int(now * 1e6),
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting,
            queued_prefill_tokens=scheduler.queued_prefill_tokens,
            kv_capacity_tokens=scheduler.blocks.count * size,
            kv_free_tokens=scheduler.blocks.free_blocks * size,
            preemptions_total=totals.preemptions,
            prefix_queries_total=totals.prefix_queries,
            prefix_hits_total=totals.prefix_hits,
            prompt_tokens_total=totals.prompt_tokens,
            generation_tokens_total=totals.generation_tokens,
            prefill_tokens_per_s=self._prefill_tokens_per_s,
            decode_step_ms=self._decode_step_ms,
            prefill_step_ms=cost.fixed_ms if cost else 0.0,
            prefill_token_ms=cost.token_ms if cost else 0.0,
            host_prefix_queries_total=totals.host_queries,
            host_prefix_hits_total=totals.host_hits,
            swaps_total=totals.swaps,
            sleep_level=sleep_level,
            drafts_total=drafts.drafts,
            draft_tokens_total=drafts.tokens,
            accepted_draft_tokens=drafts.accepted_by_place,
        )


def _smooth(old: float, new: float) -> float:
    return new if old == 0 else old + _SMOOTHING * (new - old)
