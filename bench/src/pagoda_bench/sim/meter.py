"""How fast a simulated worker takes itself to be, learned from its steps as the engine's step_meter.py does. Pure; owned by worker.py."""

from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_worker.scheduling.prefill_cost import PrefillCost, StepCost

SMOOTHING = 0.1
"""Of the newest step in the learned speeds."""


class SimMeter:
    def __init__(self, profile: EngineProfile) -> None:
        tokens, chunk_s, step_s = profile.self_test()
        self.prefill_tokens_per_s, self.decode_step_ms = tokens / chunk_s, 1000 * step_s
        self._prefill_cost = PrefillCost(StepCost.measured(tokens, 1000 * chunk_s, self.decode_step_ms))

    @property
    def prefill_cost(self) -> StepCost:
        cost = self._prefill_cost.learned
        assert cost is not None, "the self-test came first"
        return cost

    def measure(self, rows: int, prompt_tokens: int, step_s: float) -> None:
        """One step with so many sequences that decode."""
        if prompt_tokens:
            self._prefill_cost.observe(prompt_tokens, step_s * 1000, decodes=rows)
        if prompt_tokens > rows:
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, prompt_tokens / step_s)
        elif rows and not prompt_tokens:
            self.decode_step_ms = _smooth(self.decode_step_ms, step_s * 1000)


def _smooth(old: float, new: float) -> float:
    return new if old == 0 else old + SMOOTHING * (new - old)
