"""What a foreign backend's own answers teach of its speed: prefill tokens per second and milliseconds per decode step. Pure.

The time to a first token is a line over the prompt's tokens: what any prompt waits for (HTTP, a step, the queue inside) and what each
token adds. Nothing is told of the first few answers: a server's first one takes a second more than the next, and a worker that looks slow
gets no request that would show otherwise.
"""

from typing import Protocol

from pagoda_router.generation import Usage
from pagoda_router.placement.rates import StepLine

WEIGHT = 0.2
"""Of the newest answer in the mean."""
FEWEST_ANSWERS = 8
"""Before them the worker counts as the mean of the others."""
LEAST_OUTPUT_TOKENS = 4
"""An answer shorter than this says nothing about the time between tokens."""
LEAST_TOKEN_MS = 1e-3
"""Of a prompt's token where longer prompts were seen to wait no longer than short ones."""


class Answered(Protocol):
    usage: Usage | None
    began_s: float
    first_output_s: float | None
    last_output_s: float | None


class Rates:
    """0: nothing learned yet."""

    def __init__(self) -> None:
        self._prompts = StepLine()
        self._prefill_tokens_per_s = _Mean()
        self._decode_step_ms = _Mean()

    def learn(self, answer: Answered) -> None:
        """Of a stream that ended well; an answer in one piece has no first token and teaches nothing."""
        usage, first_s, last_s = answer.usage, answer.first_output_s, answer.last_output_s
        if usage is None or first_s is None or last_s is None or last_s <= first_s:
            return
        waited_s = first_s - answer.began_s
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed > 0 and waited_s > 0:
            self._prompts.observe(computed, 1000 * waited_s)
            self._prefill_tokens_per_s.add(computed / waited_s)
        if usage.completion_tokens >= LEAST_OUTPUT_TOKENS:
            self._decode_step_ms.add(1000 * (last_s - first_s) / (usage.completion_tokens - 1))

    @property
    def prefill_tokens_per_s(self) -> float:
        """By the line's slope once prompts of different lengths were seen; until then tokens by all that they waited."""
        token_ms = self._prompts.per_sequence_ms
        return self._prefill_tokens_per_s.told if token_ms is None else 1000 / max(LEAST_TOKEN_MS, token_ms)

    @property
    def decode_step_ms(self) -> float:
        return self._decode_step_ms.told


class _Mean:
    """Of all at first, then of the newest ones."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        self._count += 1
        self._mean += max(WEIGHT, 1 / self._count) * (value - self._mean)

    @property
    def told(self) -> float:
        return self._mean if self._count >= FEWEST_ANSWERS else 0.0
