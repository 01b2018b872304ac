"""One answer and the guesses at it: what came true, what proved wrong, and whether guessing on is worth it. Pure: no clock, no I/O.

    output   o o o o o o o          verified by the model's worker, in the order in which it came
    drafts         d d d d d d d    from `start` on, by the drafting worker, which does not wait for the output
                     judged │ ahead

The two arrive by different ways and at any time. As long as both say the same the drafting worker goes on, so that the way to it costs
nothing; where they differ it begins again behind what is known. Owned by a Companion; knows neither workers nor messages.
"""

from collections.abc import Sequence
from enum import StrEnum

WEIGHT_OF_A_DRAFT = 1 / 8
"""Of the newest judgement in the share of drafts that hold."""
WEIGHT_OF_A_STEP = 1 / 16
FIRST_ACCEPTANCE = 0.8
LEAST_ACCEPTANCE = 0.25
"""Below it a guess of any length gains a third of a step at most, and hardly ever arrives."""
FIRST_YIELD = 2.0
"""Hoped for, so that the first guesses have about 30 steps to arrive."""
LEAST_YIELD = 1.15
"""Tokens a step of the verifying worker, on average. Below it drafts come too late, or too seldom, to be worth their traffic."""
MOST_BEHIND = 16
"""Tokens that the drafting worker may lag behind the answer before it is told to leave them out: it reads faster than it writes."""


class Verdict(StrEnum):
    RIGHT = "right"
    """Draft on."""
    WRONG = "wrong"
    """The drafts are of another text: begin again behind the output."""
    BEHIND = "behind"
    """They hold, but all of them are old: begin again behind the output."""


class Stop(StrEnum):
    """Why a request goes on without drafts, or begins without."""

    ACCEPTANCE = "acceptance"
    """Too few hold."""
    LATE = "late"
    """They hold and save no steps."""
    DRAFTER_LOST = "drafter_lost"
    NO_DRAFTER = "no_drafter"
    NO_ROOM = "no_room"
    """Its credits do not cover the branch."""
    REFUSED = "refused"
    CONTEXT = "context"
    """The text is longer than the drafting worker takes."""
    OTHER_TOKENIZER = "other_tokenizer"
    OFF = "off"
    """The manifest says so since."""
    PAUSED = "paused"
    """The requests before it gained nothing."""


class Guesses:
    def __init__(self, resumed: Sequence[int] = ()) -> None:
        """`resumed`: output that is known before the first step."""
        self.output = list(resumed)
        self._start = len(self.output)
        self._drafts: list[int] = []
        self._judged = self._start
        self.acceptance = FIRST_ACCEPTANCE
        self.tokens_per_step = FIRST_YIELD

    @property
    def drafted_to(self) -> int:
        """Position behind the last draft."""
        return self._start + len(self._drafts)

    @property
    def ahead(self) -> int:
        """Drafts that nobody has verified yet."""
        return max(0, self.drafted_to - len(self.output))

    @property
    def text(self) -> list[int]:
        """With the drafts: what the drafting worker goes on from."""
        return self.output[: self._start] + self._drafts

    def begin_again(self) -> None:
        """Behind the output."""
        self._start = self._judged = len(self.output)
        self._drafts = []

    def came_true(self, token_ids: Sequence[int]) -> Verdict | Stop:
        """What one step of the verifying worker gave."""
        self.output += token_ids
        self.tokens_per_step += WEIGHT_OF_A_STEP * (len(token_ids) - self.tokens_per_step)
        verdict = self.judge()
        if verdict is Verdict.RIGHT and self.tokens_per_step < LEAST_YIELD:
            return Stop.LATE
        if verdict is Verdict.RIGHT and self._drafts and len(self.output) - self.drafted_to > MOST_BEHIND:
            return Verdict.BEHIND
        return verdict

    def drafted(self, token_ids: Sequence[int]) -> tuple[int, list[int]]:
        """Position and ids of what is worth telling the verifying worker; nothing of what is known there or proves wrong at once."""
        at = self.drafted_to
        self._drafts += token_ids
        first = max(at, len(self.output))
        return first, list(token_ids[first - at :])

    def judge(self) -> Verdict | Stop:
        """Each draft once, as soon as both it and its place in the output are known; the first that differs makes the rest worthless. To be
        asked after `drafted` too: the answer may have been faster."""
        for at in range(self._judged, min(len(self.output), self.drafted_to)):
            holds = self.output[at] == self._drafts[at - self._start]
            self.acceptance += WEIGHT_OF_A_DRAFT * (holds - self.acceptance)
            self._judged = at + 1
            if not holds:
                return Stop.ACCEPTANCE if self.acceptance < LEAST_ACCEPTANCE else Verdict.WRONG
        return Verdict.RIGHT
