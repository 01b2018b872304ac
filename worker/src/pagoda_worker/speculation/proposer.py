"""What guesses a sequence's next tokens, whatever it guesses from. Implemented beside this file; called by Speculation before each step."""

from typing import Protocol

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification


class Proposer(Protocol):
    def propose(self, sequence: Sequence, count: int) -> list[int]:
        """At most `count` tokens that may follow `sequence.tokens`, all of which are known; none where it has no idea. What it remembers of
        a sequence goes with the sequence."""
        ...

    def planned(self, plan: StepPlan) -> None:
        """The step for which it was asked; some of what it proposed may not be part of it."""
        ...

    def judged(self, verification: Verification, accepted: int) -> None:
        """The first `accepted` of the drafts were right."""
        ...
