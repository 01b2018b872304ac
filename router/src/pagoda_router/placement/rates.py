"""What one worker can do, learned while it works: prefill rate and decode step, from its state, its frames and finished requests. Pure.

A decode step is a line over the size of its batch, y = base + slope × sequences, kept by recursive least squares with forgetting
(Ljung, System Identification, 11.2): two numbers and a 2×2 matrix per worker. It is learned from the time between two frames of steps that
only decoded: the worker's own moving average lags behind its batch, and a line through it says that one sequence more costs ten steps.
Owned by a session's WorkerKnowledge.
"""

FORGETTING = 0.97
"""Of each sample before: about the last thirty count, so that a change is learned within seconds of decoding."""
SMOOTHING = 0.2
FEWEST_SAMPLES = 32
OUTLIER = 5.0
"""Times the worker's own average: a step in which something else happened."""
FEWEST_PREFILLED_TOKENS = 16
"""A shorter prefill is all overhead and says nothing about the rate."""
UNKNOWN = 1e6
"""Variance before anything is known."""


class StepLine:
    """Milliseconds of a decode step over the number of sequences in it."""

    def __init__(self) -> None:
        self._base = self._slope = 0.0
        self._p00 = self._p11 = UNKNOWN
        self._p01 = 0.0
        self._samples = 0
        self._least = self._most = 0

    def observe(self, sequences: int, step_ms: float) -> None:
        x = float(sequences)
        along0, along1 = self._p00 + self._p01 * x, self._p01 + self._p11 * x
        gain0, gain1 = along0 / (scale := FORGETTING + along0 + along1 * x), along1 / scale
        error = step_ms - self._base - self._slope * x
        self._base, self._slope = self._base + gain0 * error, self._slope + gain1 * error
        # Bounded: a batch that keeps its size teaches nothing of the slope, and forgetting would let the matrix grow for ever.
        self._p00 = min(UNKNOWN, (self._p00 - gain0 * along0) / FORGETTING)
        self._p11 = min(UNKNOWN, (self._p11 - gain1 * along1) / FORGETTING)
        self._p01 = max(-UNKNOWN, min(UNKNOWN, (self._p01 - gain0 * along1) / FORGETTING))
        self._least = sequences if not self._samples else min(self._least, sequences)
        self._most = max(self._most, sequences)
        self._samples += 1

    @property
    def per_sequence_ms(self) -> float | None:
        """None until batches of different sizes were seen."""
        if self._samples < FEWEST_SAMPLES or self._most < 2 * self._least:
            return None
        # No batch is free to begin with: of its step at the largest size seen, one sequence is at most its share.
        return max(0.0, min(self._slope, (self._base + self._slope * self._most) / self._most))

    def at(self, sequences: int) -> float | None:
        """The step of a batch of this size; None until learned."""
        slope = self.per_sequence_ms
        return None if slope is None else max(0.0, self._base + (self._slope - slope) * self._most) + slope * sequences


class WorkerRates:
    def __init__(self) -> None:
        self.steps = StepLine()
        self._own_prefill_tokens_per_s = 0.0
        self._told_prefill_tokens_per_s = 0.0
        self._told_step_ms = 0.0
        self.prefill_step_ms = 0.0
        """What a step that computes prompts costs whatever their length; 0: not told apart from its tokens."""

    def told(
        self, prefill_tokens_per_s: float, decode_step_ms: float, *, prefill_step_ms: float = 0.0, prefill_token_ms: float = 0.0
    ) -> None:
        """A state of the worker; what it has not measured is 0. What a step and each of its tokens cost goes before the rate of both
        together, which depends on the prompts that came."""
        self._told_step_ms = decode_step_ms
        if prefill_token_ms > 0:
            self._told_prefill_tokens_per_s, self.prefill_step_ms = 1000 / prefill_token_ms, prefill_step_ms
        else:
            self._told_prefill_tokens_per_s, self.prefill_step_ms = prefill_tokens_per_s, 0.0

    def decoded(self, sequences: int, took_ms: float) -> None:
        """A step of so many sequences that did nothing else."""
        if took_ms > 0 and (not self._told_step_ms or took_ms < OUTLIER * self._told_step_ms):
            self.steps.observe(sequences, took_ms)

    def step_ms(self, sequences: int) -> float:
        """Of a batch of this size; until that is learned, the worker's own average, whatever batch it is of. 0: neither."""
        learned = self.steps.at(max(1, sequences))
        return self._told_step_ms if learned is None else learned

    def prefilled(self, tokens: int, took_s: float) -> None:
        """A request's uncached prompt tokens, from its first chunk to its first token."""
        if tokens >= FEWEST_PREFILLED_TOKENS and took_s > 0:
            rate, old = tokens / took_s, self._own_prefill_tokens_per_s
            self._own_prefill_tokens_per_s = rate if old == 0 else old + SMOOTHING * (rate - old)

    @property
    def prefill_tokens_per_s(self) -> float:
        """The worker's own figure, which knows what else was in its steps; without one, what requests took. 0: neither."""
        return self._told_prefill_tokens_per_s or self._own_prefill_tokens_per_s
