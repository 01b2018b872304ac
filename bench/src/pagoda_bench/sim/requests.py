"""One simulated request from its arrival to its end: what it asks for, where it is, and when what happened. Plain records.

Made by the loop; written by the router's side and the workers; read by the oracle and the figures.
"""

from dataclasses import dataclass, field

from pagoda_bench.sim.demand import Conversation, Turn


@dataclass(slots=True, eq=False)
class SimRequest:
    number: int
    conversation: Conversation
    turn_index: int
    arrived_s: float
    oracle_tokens: int = 0
    """Of its prompt, the longest beginning that was ever part of an earlier request, in whole blocks."""
    placed_s: float | None = None
    worker: int | None = None
    cached_tokens: int = 0
    """What its worker found."""
    predicted_ttft_ms: float = 0.0
    first_s: float | None = None
    """Of its first token."""
    ended_s: float | None = None
    """Of its last token."""
    refused: str = ""
    """Why it was turned away or broken off; empty: it was not."""
    retry_after_s: float = 0.0
    """Told to one that was turned away."""
    preemptions: int = 0
    tries: int = 0
    lost_on: set[int] = field(default_factory=set)
    """Workers that died under it."""

    @property
    def turn(self) -> Turn:
        return self.conversation.turns[self.turn_index]

    @property
    def prompt_tokens(self) -> int:
        return self.turn.prompt_tokens

    @property
    def output_tokens(self) -> int:
        return self.turn.output_tokens

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """None without a second token."""
        if self.first_s is None or self.ended_s is None or self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_s) / (self.output_tokens - 1)
