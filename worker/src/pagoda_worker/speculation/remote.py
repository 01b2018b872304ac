"""Guesses that another worker made and a router brought: what is held for each sequence, and how much of it still fits its text.

A stretch is tokens from one position on. Steps go on while drafts travel, so the beginning of a stretch may be text already by the time it
is looked at: where it is the same text the rest counts, else the stretch is worthless. Called by Speculation before each step and
by the engine with what arrives; knows neither routers nor who guessed.
"""

from weakref import WeakKeyDictionary

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification

MOST_HELD = 512
"""Tokens of one sequence; what comes beyond is dropped. Routers stay far below."""


class _Stretch:
    __slots__ = ("start", "tokens")

    def __init__(self, start: int, tokens: list[int]) -> None:
        self.start = start
        """Of the sequence's tokens, prompt included."""
        self.tokens = tokens

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class RemoteProposer:
    def __init__(self) -> None:
        self._held: WeakKeyDictionary[Sequence, _Stretch] = WeakKeyDictionary()

    def take(self, sequence: Sequence, position: int, token_ids: list[int]) -> None:
        """`position` in the output of the first of `token_ids`. Continues the stretch that is held, or replaces it from there on; one that
        would leave a gap behind what is known is the rest of a guess that has proved wrong."""
        start = sequence.output_start + position
        held = self._held.get(sequence)
        if held is not None and held.start <= start <= held.end:
            del held.tokens[start - held.start :]
            held.tokens += token_ids[: MOST_HELD - len(held.tokens)]
        elif start <= len(sequence.tokens):
            self._held[sequence] = _Stretch(start, token_ids[:MOST_HELD])

    def holds(self, sequence: Sequence) -> bool:
        """Something that may be a guess; what has no drafts need not wait for its newest token to be known."""
        return sequence in self._held

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        held = self._held.get(sequence)
        if held is None:
            return []
        known = sequence.tokens[held.start :]
        if len(held.tokens) <= len(known) or held.tokens[: len(known)] != known:
            del self._held[sequence]
            return []
        del held.tokens[: len(known)]
        held.start = len(sequence.tokens)
        return held.tokens[:count]

    def planned(self, plan: StepPlan) -> None:
        pass

    def judged(self, verification: Verification, accepted: int) -> None:
        pass
