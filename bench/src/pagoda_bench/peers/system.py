"""What the runner needs of anything it times: one blocking round, and an end.

Implemented over HTTP (`http_systems`) and by drivers in other interpreters (`driven`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pagoda_bench.errors import BenchError


class PeerUnavailable(BenchError):
    """This system cannot be measured here; the message is the reason, one line of the table."""


@dataclass(frozen=True, slots=True)
class Round:
    seconds: float
    """From the moment when the first request left until the last token of the last request was there."""
    texts: tuple[str, ...]
    """Greedy output by request, without special tokens."""
    ttft_s: tuple[float, ...] = ()
    """By request; empty where the system shows no single tokens."""


class System(Protocol):
    def round(self, prompts: Sequence[list[int]], output_tokens: int) -> Round:
        """Raises PeerUnavailable when the answer is not exactly `output_tokens` per prompt, or the system is gone."""
        ...

    def stop(self) -> None:
        """Ends every process it started; safe to call twice."""
        ...
