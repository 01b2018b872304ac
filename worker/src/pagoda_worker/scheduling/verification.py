"""One row's drafts in the plan of a step. Plain data, planned by the scheduler, computed by the runner, settled by settling."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagoda_worker.scheduling.plan import Sequence


@dataclass(slots=True)
class Verification:
    """A row that decodes 1 + k tokens: its newest one at position `start`, then k drafts. It samples at each of these places, as if it had
    got there step by step; what is sampled at a place counts while every draft before it was what the place before sampled."""

    sequence: "Sequence"
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
