"""One row's drafts in the plan of a step, and what is told of all of them. Plain data, planned by the scheduler, computed by the runner,
settled by settling."""

from dataclasses import dataclass
from typing import NamedTuple

from pagoda_worker.scheduling.sequence import Sequence


class DraftCounts(NamedTuple):
    """Of an engine so far."""

    drafts: int = 0
    """Guesses verified; their tokens, and those accepted at each place:"""
    tokens: int = 0
    accepted_by_place: tuple[int, ...] = ()


@dataclass(slots=True)
class Guesswork:
    """What a step's guesses are asked for, and what they took: written by Speculation before the step and by the draft model in it."""

    forecast: float = 0.0
    """Gain in tokens per second that is expected of them. 0: nobody was asked for any."""
    on_trial: bool = False
    """A few rows guess, to see."""
    anew: bool = False
    """Those who guess did not before, and are met with everything they already are: that costs more than it will."""
    least_chance: float = 0.0
    """What a draft model thinks less likely, with all before it, is not worth its place."""
    promised: float | None = None
    """Of a draft model's guesses, how many it thinks are right. None: it does not say."""
    proposing_s: float = 0.0
    """Before the launch, without a model."""
    reading_s: float = 0.0
    """Of the launch, what the draft model took to catch up, and to guess from there:"""
    guessing_s: float = 0.0


@dataclass(slots=True)
class Verification:
    """A row that decodes 1 + k tokens: its newest one at position `start`, then k drafts. It samples at each of these places, as if it had
    got there step by step; what is sampled at a place counts while every draft before it was what the place before sampled."""

    sequence: Sequence
    start: int
    drafts: list[int]
    """Of a draft model: known once it has run, in this step, and then perhaps fewer; until then zeros."""
    draft_from: int | None = None
    """The first position that the draft model has not read; None: the drafts are known."""

    @property
    def places(self) -> int:
        return 1 + len(self.drafts)

    def settle_on(self, drafts: list[int]) -> None:
        """What a draft model guessed, at most as many as were planned."""
        self.sequence.pending -= len(self.drafts) - len(drafts)
        self.drafts[:] = drafts
        self.sequence.drafts[:] = drafts
