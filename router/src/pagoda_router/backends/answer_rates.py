"""What a foreign backend's own answers teach of its speed: prefill tokens per second and milliseconds per decode step. Pure."""

from typing import Protocol

from pagoda_router.generation import Usage

WEIGHT = 0.2
"""Of the newest answer in the mean."""
LEAST_OUTPUT_TOKENS = 4
"""An answer shorter than this says nothing about the time between tokens."""


class Answered(Protocol):
    usage: Usage | None
    began_s: float
    first_output_s: float | None
    last_output_s: float | None


class Rates:
    """0: nothing learned yet."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_step_ms = 0.0

    def learn(self, answer: Answered) -> None:
        """Of a stream that ended well; an answer in one piece has no first token and teaches nothing."""
        usage, first_s, last_s = answer.usage, answer.first_output_s, answer.last_output_s
        if usage is None or first_s is None or last_s is None or last_s <= first_s:
            return
        waited_s = first_s - answer.began_s
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed > 0 and waited_s > 0:
            self.prefill_tokens_per_s = _mean(self.prefill_tokens_per_s, computed / waited_s)
        if usage.completion_tokens >= LEAST_OUTPUT_TOKENS:
            self.decode_step_ms = _mean(self.decode_step_ms, 1000 * (last_s - first_s) / (usage.completion_tokens - 1))


def _mean(before: float, now: float) -> float:
    return now if before == 0 else before + WEIGHT * (now - before)
