"""What a step that computes prompts costs: fixed + each × tokens, learned from steps of both. Pure arithmetic over their times.

One figure of tokens a second tells of the prompts that came, not of the machine: a step of 20 tokens takes nearly what one of none does, so
a worker that has seen short prompts only would be taken for a slow one. And steps that decode more take longer by that, so what a token
adds shows in how steps that decode about as much differ by their prompts. The step meter owns one, routers and Speculation are told what it
knows; the simulator's workers have one too.
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
    """Least squares of relative errors (a step of a second is not known to the millisecond) with forgetting (Ljung, System Identification,
    11.2), held to what was known before by a ridge. One slope for all classes of steps that decode about as much, each with a level of its
    own (analysis of covariance)."""

    def __init__(self, before: StepCost | None = None) -> None:
        """`before`: measured otherwise, both parts above 0. None: the first step is taken for half of each."""
        self._before = before
        self._all = _Spread()
        """Of steps that are mostly prompts: what is fixed of those."""
        self._alike: dict[int, _Spread] = {}
        """By what decodes beside, in powers of two."""

    def observe(self, tokens: int, took_ms: float, *, decodes: int = 0) -> None:
        """A step with so many prompt tokens, at least one, and so many that decode."""
        if self._before is None:
            self._before = StepCost(took_ms / 2, took_ms / 2 / tokens)
        self._alike.setdefault(decodes.bit_length(), _Spread()).note(tokens, took_ms)
        if tokens > decodes:
            self._all.note(tokens, took_ms)

    @property
    def learned(self) -> StepCost | None:
        """None before anything is known."""
        if self._before is None:
            return None
        before, steps = self._before, self._all
        of_fixed, of_token = TRUST / before.fixed_ms**2, TRUST / before.token_ms**2
        both, squares = (sum(getattr(each, name) for each in self._alike.values()) for name in ("both", "squares"))
        token_ms = max((both + of_token * before.token_ms) / (squares + of_token), LEAST_PART * before.token_ms)
        fixed_ms = (steps.weight * (steps.ms - token_ms * steps.tokens) + of_fixed * before.fixed_ms) / (steps.weight + of_fixed)
        if fixed_ms < 0:  # the line through 0
            tokens_ms = steps.both + steps.weight * steps.tokens * steps.ms
            tokens_squared = steps.squares + steps.weight * steps.tokens**2
            fixed_ms, token_ms = 0.0, (tokens_ms + of_token * before.token_ms) / (tokens_squared + of_token)
        return StepCost(fixed_ms, token_ms)


class _Spread:
    """Of tokens and milliseconds: weighted means, and sums of products of what differs from them (West 1979)."""

    __slots__ = ("both", "ms", "squares", "tokens", "weight")

    def __init__(self) -> None:
        self.weight = self.tokens = self.ms = self.both = self.squares = 0.0

    def note(self, tokens: int, ms: float) -> None:
        weight = ms**-2
        self.weight = FORGETTING * self.weight + weight
        more, share = tokens - self.tokens, weight / self.weight
        self.tokens += share * more
        self.ms += share * (ms - self.ms)
        self.both = FORGETTING * self.both + weight * more * (ms - self.ms)
        self.squares = FORGETTING * self.squares + weight * more * (tokens - self.tokens)
