"""What a foreign backend's own answers teach of its speed: prefill tokens per second and milliseconds per decode step. No I/O.

The time to a first token is a line over the prompt's tokens: what any prompt waits for (HTTP, a step, the queue inside) and what each
token adds. Nothing is told of a worker's first few answers, nor of one that has not answered for a while: a server's first answer takes a
second more than the next, a neighbour may have had the machine, and a worker that once looked slow would get no request to show otherwise.
"""

import time
from collections.abc import Callable
from typing import Protocol

from pagoda_router.generation import Usage
from pagoda_router.placement.rates import StepLine

WEIGHT = 0.2
"""Of the newest answer in the mean."""
FEWEST_ANSWERS = 8
"""Before them the worker counts as the mean of the others."""
FRESH_S = 10.0
"""After its last answer what was learned still stands."""
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
    """0: not known."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: the one of answers."""
        self._clock = clock
        self._learned_s = float("-inf")
        self._prompts = StepLine()
        self._step_ms, self._answers = 0.0, 0

    def learn(self, answer: Answered) -> None:
        """Of a stream that ended well; an answer in one piece has no first token and teaches nothing."""
        usage, first_s, last_s = answer.usage, answer.first_output_s, answer.last_output_s
        if usage is None or first_s is None or last_s is None or last_s <= first_s:
            return
        if not self._is_fresh:
            self._answers = 0
        self._learned_s = self._clock()
        waited_s = first_s - answer.began_s
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed > 0 and waited_s > 0:
            self._prompts.observe(computed, 1000 * waited_s)
        if usage.completion_tokens >= LEAST_OUTPUT_TOKENS:
            self._answers += 1
            step_ms = 1000 * (last_s - first_s) / (usage.completion_tokens - 1)
            self._step_ms += max(WEIGHT, 1 / self._answers) * (step_ms - self._step_ms)

    @property
    def _is_fresh(self) -> bool:
        return self._clock() - self._learned_s < FRESH_S

    @property
    def prefill_tokens_per_s(self) -> float:
        """By the line's slope, once prompts of different lengths were seen: what a short prompt waits for says nothing of its tokens."""
        token_ms = self._prompts.per_sequence_ms
        return 0.0 if token_ms is None or not self._is_fresh else 1000 / max(LEAST_TOKEN_MS, token_ms)

    @property
    def decode_step_ms(self) -> float:
        return self._step_ms if self._answers >= FEWEST_ANSWERS and self._is_fresh else 0.0
