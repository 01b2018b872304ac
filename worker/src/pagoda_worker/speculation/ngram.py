"""Prompt lookup: what followed the last few tokens where they stood before, in the same prompt and output, may follow them again.

Saxena, Prompt Lookup Decoding, 2023. Costs a dictionary entry for each token and no model. Owns one index per live sequence, in step with
its tokens; called by Speculation.
"""

from weakref import WeakKeyDictionary

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification

LEAST = 2
"""Tokens that must agree. One alone is followed by too many things."""
LONGEST = 8
"""Tokens compared; where they agree so far a longer match tells little more."""
LATEST = 4
"""Places compared, of those where the last tokens stood before."""


class _Index:
    """Where each pair of neighbouring tokens stands."""

    __slots__ = ("_after", "_tokens", "seen")

    def __init__(self) -> None:
        self._after: dict[tuple[int, int], list[int]] = {}
        """Pair → positions after it, ascending."""
        self.seen = 1
        """Positions up to here are in the index."""

    def follow(self, tokens: list[int]) -> None:
        after = self._after
        for at in range(self.seen, len(tokens)):
            after.setdefault((tokens[at - 1], tokens[at]), []).append(at + 1)
        self.seen = max(self.seen, len(tokens))

    def earlier(self, tokens: list[int]) -> int | None:
        """The position after the longest earlier match of the last tokens, the latest among equals."""
        length, best, longest = len(tokens), None, 0
        for at in reversed(self._after.get((tokens[-2], tokens[-1]), [])[-1 - LATEST : -1]):  # the last one is the end itself
            same = LEAST
            while same < LONGEST and same < at and tokens[at - 1 - same] == tokens[length - 1 - same]:
                same += 1
            if same > longest:
                best, longest = at, same
        return best


class NgramProposer:
    def __init__(self) -> None:
        self._indices: WeakKeyDictionary[Sequence, _Index] = WeakKeyDictionary()

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        tokens = sequence.tokens
        if len(tokens) <= LEAST:
            return []
        index = self._indices.get(sequence)
        if index is None:
            index = self._indices[sequence] = _Index()
        index.follow(tokens)
        at = index.earlier(tokens)
        return [] if at is None else continuation(tokens, at, count)

    def planned(self, plan: StepPlan) -> None:
        pass

    def judged(self, verification: Verification, accepted: int) -> None:
        pass


def continuation(tokens: list[int], at: int, count: int) -> list[int]:
    """`count` tokens from position `at` on, at most len(tokens); where the text ends it goes on with what was just guessed, so that
    something that repeats itself goes on repeating itself."""
    found = tokens[at : at + count]
    period = len(tokens) - at
    while len(found) < count:
        found.append(found[len(found) - period])
    return found
