"""What scheduler and runner say to each other: the plan of one step. Plain data; knows neither tensors nor policy.

The runner keeps one row of state per running sequence. A plan carries only what changed: rows opened, blocks added, blocks to copy.
"""

from dataclasses import dataclass, field

from pagoda_worker.scheduling.adapters import Adapter
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Guesswork, Verification


@dataclass(slots=True)
class Chunk:
    """`count` tokens of one row from position `start` on. `sequences` sample from its last position: none in the middle of a prompt,
    several when n sequences part here (each already has its own row)."""

    sequence: Sequence
    start: int
    count: int
    sequences: list[Sequence]

    @property
    def embeds(self) -> bool:
        """Its last position is the last of a prompt whose hidden state was asked for."""
        return self.sequence.request.embedding and self.start + self.count == len(self.sequence.tokens)


@dataclass(slots=True)
class StepPlan:
    decodes: list[Sequence] = field(default_factory=list)
    """One token each, at position computed - 1. Kept apart from chunks: the common case costs no object per row."""
    verifications: list[Verification] = field(default_factory=list)
    catch_ups: list[Chunk] = field(default_factory=list)
    """Known tokens that only the draft model reads."""
    guesswork: Guesswork = field(default_factory=Guesswork)
    chunks: list[Chunk] = field(default_factory=list)
    opened: list[Sequence] = field(default_factory=list)
    """Rows that got a new owner: the runner reads tokens, blocks and sampling settings of these."""
    added_blocks: list[tuple[int, int, int]] = field(default_factory=list)
    """(row, index in the row's table, block)."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """(from block, to block), before anything else of the step: copy on write."""
    scrubs: list[int] = field(default_factory=list)
    """Blocks to zero before the copies: they may hold non-finite numbers, and 0 x NaN would reach their next owner through padding."""
    swap_out: list[tuple[int, int]] = field(default_factory=list)
    """(block, host slot) to copy to the host, before anything else of the step: what follows may zero or write the block. Once only: the
    runner takes them out of the plan, so that a step that is tried again does not copy what the first try wrote."""
    swap_in: list[tuple[int, int]] = field(default_factory=list)
    """(block, host slot) to copy to the device, after the copies and before the step reads anything."""

    adapters: list[tuple[int, Adapter]] = field(default_factory=list)
    """(slot, what is to be copied there), before the step reads anything."""

    @property
    def empty(self) -> bool:
        """Nothing to compute. Copies then neither: blocks move only for somebody who computes in the same step."""
        return not self.decodes and not self.chunks and not self.verifications

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    @property
    def decode_tokens(self) -> int:
        """Rows of the batch that are one token of a sequence each."""
        return len(self.decodes) + sum(each.places for each in self.verifications)

    @property
    def decodes_alone(self) -> bool:
        """One token of every row and nothing else: what may be computed by one call, or one captured graph, whatever the rows."""
        return not self.chunks and self.decode_tokens > 0

    @property
    def tokens(self) -> int:
        return self.decode_tokens + self.prefill_tokens

    @property
    def sequences(self) -> int:
        """That take part, each once."""
        return len(self.decodes) + len(self.verifications) + sum(len(chunk.sequences) or 1 for chunk in self.chunks)

    def sampling(self) -> list[Sequence]:
        """In the order of the runner's answer; one that verifies once for each of its places, in their order, after everyone else."""
        places = [each.sequence for each in self.verifications for _ in range(each.places)]
        return [*self.decodes, *(sequence for chunk in self.chunks for sequence in chunk.sequences), *places]

    def with_changes_of(self, earlier: "StepPlan") -> "StepPlan":
        """Itself, with what `earlier` was to change before its own."""
        self.opened = earlier.opened + self.opened
        self.added_blocks = earlier.added_blocks + self.added_blocks
        self.copies = earlier.copies + self.copies
        self.scrubs = earlier.scrubs + self.scrubs
        self.swap_out = earlier.swap_out + self.swap_out
        self.swap_in = earlier.swap_in + self.swap_in
        self.adapters = earlier.adapters + self.adapters
        self.catch_ups = earlier.catch_ups + self.catch_ups
        return self

    @property
    def splits(self) -> bool:
        return len(self.decodes) + len(self.chunks) + len(self.verifications) > 1

    def halves(self) -> "tuple[StepPlan, StepPlan]":
        """The same step in two, in the same order: a chunk may read what an earlier one writes. Changes go with the first half; doing
        them again is harmless as long as nothing of the step was computed."""
        parts: list[Sequence | Chunk | Verification] = [*self.decodes, *self.chunks, *self.verifications]
        cut = (len(parts) + 1) // 2
        first, second = StepPlan().with_changes_of(self), StepPlan()
        for half, members in ((first, parts[:cut]), (second, parts[cut:])):
            half.decodes = [part for part in members if isinstance(part, Sequence)]
            half.chunks = [part for part in members if isinstance(part, Chunk)]
            half.verifications = [part for part in members if isinstance(part, Verification)]
        return first, second
