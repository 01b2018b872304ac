"""One request as measured: when it was due, sent and answered, and what both sides counted. Written by loops.py, read by everything after.

All times are seconds of time.monotonic().
"""

from array import array
from dataclasses import dataclass
from itertools import pairwise


@dataclass(slots=True, kw_only=True)
class Record:
    name: str
    """Unique in the run; also its x-request-id."""
    due_s: float
    """When it should be sent: by the arrival process in an open loop, when its user was free in a closed one. Latencies count from here."""
    sent_s: float
    ended_s: float
    arrivals: "array[float]"
    """Of every chunk with text."""
    finished_s: float | None
    """When the finish_reason came; None: it did not."""
    prompt_tokens_asked: int | None
    output_tokens_asked: int
    prompt_tokens: int | None
    """By the server's usage, like the next two."""
    output_tokens: int | None
    cached_tokens: int | None
    error: str | None
    """Its kind; None: a whole answer with at least one chunk of text."""
    detail: str = ""
    client_output_tokens: int | None = None
    """By the tokenizer of the client, where one is given: the text encoded anew, which need not give the ids that were sampled."""
    warm: bool = False
    """Sent to warm the server up; in no figure."""

    @property
    def tokens(self) -> int:
        """Output: the server's count, else one a chunk."""
        return len(self.arrivals) if self.output_tokens is None else self.output_tokens

    @property
    def last_s(self) -> float:
        """When the last token was there: with the last text, or with the finish_reason, since a last token may have no text."""
        return max(self.arrivals[-1], self.finished_s or 0.0)

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0] - self.due_s

    @property
    def e2e_s(self) -> float:
        return self.last_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """None: a single token, or all in one chunk."""
        if len(self.arrivals) < 2 or self.tokens < 2:
            return None
        return (self.last_s - self.arrivals[0]) / (self.tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in pairwise(self.arrivals)]

    @property
    def lateness_s(self) -> float:
        """Connecting included; already in the latencies, since they count from when it was due."""
        return self.sent_s - self.due_s


@dataclass(frozen=True, slots=True)
class Window:
    """The steady state."""

    start_s: float
    end_s: float
    is_steady: bool = True
    """False: the run was too short to have one, and this is all of it after the warm-up."""

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s

    def holds(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s
