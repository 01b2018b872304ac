"""How far the draft model has read each sequence, and who may guess with it in this step. Pure bookkeeping beside execution/drafter.py.

The draft model's keys and values lie under the same block numbers as the model's own, but only where it ran. What it has not read of a row
it catches up with in the step in which the row guesses next, within a budget; a block that another sequence filled with the same tokens
counts as read. Wrong bookkeeping could cost acceptance, never a token.
"""

from weakref import WeakKeyDictionary

from pagoda_worker.scheduling.plan import Chunk, StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification


class _Read:
    __slots__ = ("blocks", "stay", "tokens")

    def __init__(self, stay: int, tokens: int, blocks: int) -> None:
        self.stay = stay
        """Of the sequence's stays on the device; its blocks are others after each."""
        self.tokens = tokens
        self.blocks = blocks
        """Noted as filled: a block can be as soon as its hash is known."""


class DraftModelProposer:
    def __init__(self, *, block_size: int, budget: int, max_len: int) -> None:
        """`budget`: tokens of a step to catch up with. `max_len`: of the longest sequence that the model takes."""
        self._size = block_size
        self._budget = budget
        self._max_len = max_len
        self._read: WeakKeyDictionary[Sequence, _Read] = WeakKeyDictionary()
        self._filled: dict[int, bytes] = {}
        """Block → the hash of what it held when the draft model had read all of it."""
        self._left = budget
        self._catching_up: list[Chunk] = []

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        """Zeros: the guesses are made on the device, in the step that verifies them."""
        read = self._of(sequence)
        behind = len(sequence.tokens) - read.tokens
        count = min(count, self._max_len - len(sequence.tokens))
        if count <= 0:
            return []
        if behind > self._left:
            if self._left > 0:
                self._catching_up.append(Chunk(sequence, read.tokens, self._left, []))
            self._left = 0
            return []
        self._left -= behind
        return [0] * count

    def planned(self, plan: StepPlan) -> None:
        """Says of every verification where the draft model goes on reading. Who lost its blocks meanwhile does not catch up."""
        if not plan.verifications and not self._catching_up:
            return
        for each in plan.verifications:
            each.draft_from = self._of(each.sequence).tokens
            self._overwrites(each.sequence, each.start + each.places)
        decoding = set(plan.decodes)
        plan.catch_ups = [chunk for chunk in self._catching_up if chunk.sequence in decoding]
        for chunk in plan.catch_ups:
            self._overwrites(chunk.sequence, chunk.start + chunk.count)
            self._went_on(chunk.sequence, chunk.start + chunk.count)
        self._left, self._catching_up = self._budget, []

    def judged(self, verification: Verification, accepted: int) -> None:
        """Its own guesses were read too, but for the last one; those that were rejected will be written over."""
        if verification.draft_from is not None and not verification.sequence.ended:
            self._went_on(verification.sequence, verification.start + 1 + max(min(accepted, len(verification.drafts) - 1), 0))

    def _of(self, sequence: Sequence) -> _Read:
        read = self._read.get(sequence)
        if read is None or read.stay != sequence.preemptions:
            tokens = 0
            for block, known in zip(sequence.blocks, sequence.hashes[1:], strict=False):
                if self._filled.get(block) != known:
                    break
                tokens += self._size
            read = self._read[sequence] = _Read(sequence.preemptions, min(tokens, len(sequence.tokens) - 1), tokens // self._size)
        return read

    def _went_on(self, sequence: Sequence, tokens: int) -> None:
        read = self._of(sequence)
        full = min(tokens // self._size, len(sequence.hashes) - 1, len(sequence.blocks))
        for at in range(read.blocks, full):
            self._filled[sequence.blocks[at]] = sequence.hashes[at + 1]
        read.tokens, read.blocks = tokens, max(full, read.blocks)

    def _overwrites(self, sequence: Sequence, end: int) -> None:
        """What it reads now goes where another text may have been."""
        for block in sequence.blocks[self._of(sequence).blocks : -(-end // self._size)]:
            self._filled.pop(block, None)
