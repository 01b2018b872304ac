"""What a step that computes prompts costs: fixed + each × tokens, learned from steps of both. Pure arithmetic over their times.

One figure of tokens a second tells of the prompts that came, not of the machine: a step of 20 tokens takes nearly what one of none does, so
a worker that has seen short prompts only would be taken for a slow one. The step meter owns one; the simulator's workers too.
"""

from typing import NamedTuple

FORGETTING = 0.98
"""Of each step before: about the last fifty count."""
TRUST = 0.04
"""In what was known before the first step, beside one step's time: as if that were right to a half, and a step's time to a tenth. It is
never forgotten, since prompts that are all alike tell nothing of the other part."""
LEAST_PART = 0.05
"""Of what was known before, for a prompt's token: noise must not make prompts free."""


class StepCost(NamedTuple):
    fixed_ms: float
    token_ms: float

    @staticmethod
    def measured(tokens: int, took_ms: float, step_ms: float) -> "StepCost":
        """Of one step with so many tokens, and one of next to none."""
        return StepCost(step_ms, max(took_ms - step_ms, LEAST_PART * took_ms) / tokens)


class PrefillCost:
    """Least squares of relative errors (a step of a second is not known to the millisecond) as weighted sums with forgetting (Ljung, System
    Identification, 11.2), held to what was known before by a ridge."""

    def __init__(self, before: StepCost | None = None) -> None:
        """`before`: measured otherwise, both parts above 0. None: the first step is taken for half of each."""
        self._before = before
        self._weight = self._tokens = self._tokens_squared = self._ms = self._tokens_ms = 0.0

    def observe(self, tokens: int, took_ms: float) -> None:
        """A step with so many prompt tokens, at least one."""
        if self._before is None:
            self._before = StepCost(took_ms / 2, took_ms / 2 / tokens)
        weight = took_ms**-2
        self._weight = FORGETTING * self._weight + weight
        self._tokens = FORGETTING * self._tokens + weight * tokens
        self._tokens_squared = FORGETTING * self._tokens_squared + weight * tokens * tokens
        self._ms = FORGETTING * self._ms + weight * took_ms
        self._tokens_ms = FORGETTING * self._tokens_ms + weight * tokens * took_ms

    @property
    def learned(self) -> StepCost | None:
        """None before anything is known."""
        if self._before is None:
            return None
        before = self._before
        of_fixed, of_token = TRUST / before.fixed_ms**2, TRUST / before.token_ms**2
        a, b, d = self._weight + of_fixed, self._tokens, self._tokens_squared + of_token
        ms, tokens_ms = self._ms + of_fixed * before.fixed_ms, self._tokens_ms + of_token * before.token_ms
        token_ms = max((a * tokens_ms - b * ms) / (a * d - b * b), LEAST_PART * before.token_ms)
        fixed_ms = (ms - b * token_ms) / a
        if fixed_ms < 0:
            fixed_ms, token_ms = 0.0, tokens_ms / d
        return StepCost(fixed_ms, token_ms)
