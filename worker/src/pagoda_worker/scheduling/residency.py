"""Where the keys and values of sequences lie: in device blocks, shared or own, and in host slots once they had to leave.

Owns the block pool, the swap space and the host tier; called by the scheduler, which decides who runs. Knows numbers of blocks and slots,
no tensors: what is to be copied goes into the step's plan.

    waiting, new           device prefix (shared) | host tier (copied in, if that is cheaper) | to compute
    waiting, swapped out   device prefix (shared) | its own host slots (copied in)            | to compute
    running                blocks of its own and shared ones
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.host_slots import HostTier, SwapSpace
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.policy import Restore, Speeds, choose_restore
from pagoda_worker.scheduling.prefix import cached_prefix, register_prefix
from pagoda_worker.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """Host memory for blocks, in slots of one block each. 0: none."""

    swap_slots: int = 0
    tier_slots: int = 0
    block_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What of a sequence that wants to run need not be computed."""

    shared: list[int]
    """Device blocks with its first tokens."""
    host_hashes: list[bytes]
    """Of the blocks after those, in the host tier and worth copying."""
    fresh: int
    """Blocks to take for the rest of its present length."""
    computed: int
    """Tokens that are there once the copies are done."""


@dataclass(frozen=True, slots=True)
class KvUse:
    """One moment of the cache, in tokens."""

    written: int
    """In blocks that sequences hold; a shared block counts once."""
    held: int
    capacity: int


class Residency:
    def __init__(self, blocks: BlockPool, host: HostRoom, *, prefix_caching: bool) -> None:
        self.blocks = blocks
        self.speeds = Speeds()
        """Set by the engine as it learns."""
        self.swap = SwapSpace(host.swap_slots)
        self.tier = HostTier(host.swap_slots, host.tier_slots)
        self._block_bytes = host.block_bytes
        self._prefix_caching = prefix_caching
        self._scrubs: dict[int, None] = {}
        """Blocks to zero before anything is computed, in the order in which they came."""
        self._doubtful: set[int] = set()
        """Blocks with a known prefix whose numbers nobody has vouched for: to be zeroed when they are taken for something else."""
        self._late_swap_out: list[tuple[int, int]] = []
        """Of a step that turned out empty, for the next one."""
        blocks.keep_evicted = host.tier_slots > 0

    def begin_step(self) -> StepPlan:
        self.swap.begin_step()
        self.tier.begin_step()
        return StepPlan(swap_out=self._late_swap_out)

    def end_step(self, plan: StepPlan) -> None:
        """An empty plan never reaches the device. What it was to do first stays for the next one; meanwhile no block is written."""
        self._late_swap_out = []
        if plan.empty:
            plan.swap_out, self._late_swap_out = [], plan.swap_out
        else:
            plan.scrubs, self._scrubs = list(self._scrubs), {}

    # ------------------------------------------------------------ coming

    def find(self, sequence: Sequence, reserve: int) -> Found:
        """`reserve`: tokens to have blocks for, at least its present length."""
        size = self.blocks.block_size
        shared = cached_prefix(self.blocks, sequence) if self.reads_prefix(sequence) else []
        total = self.blocks_for(reserve)
        computed = len(shared) * size
        hashes: list[bytes] = []
        if sequence.swapped:
            computed = max(computed, sequence.swapped_tokens)
        elif self.tier.count and self.reads_prefix(sequence):
            full = (len(sequence.tokens) - 1) // size
            wanted = sequence.hashes[1 + len(shared) : full + 1]
            hashes = wanted[: self.tier.match(wanted)]
            if hashes and not self._worth_copying(len(hashes)):
                hashes = []
            computed += len(hashes) * size
        return Found(shared, hashes, total - len(shared), computed)

    def _worth_copying(self, blocks: int) -> bool:
        tokens = blocks * self.blocks.block_size
        return choose_restore(tokens=tokens, copied_bytes=blocks * self._block_bytes, speeds=self.speeds).way == "copy"

    def need(self, found: Found) -> int:
        """Blocks that would leave `free_blocks`."""
        return found.fresh + self.blocks.evictable_among(found.shared)

    def enter(self, plan: StepPlan, sequence: Sequence, found: Found) -> None:
        """Blocks for its present length, and the copies that fill them as far as somebody has the content."""
        self.blocks.share(found.shared)
        # Before blocks are taken: what that evicts must not push out of the tier what is about to be read.
        slots = self.tier.read(found.host_hashes)
        fresh = self._take(plan, found.fresh)
        sequence.blocks = [*found.shared, *fresh]
        if sequence.swapped:
            slots = sequence.swapped[len(found.shared) :]
            self.swap.release(sequence.swapped, read=True)
            sequence.swapped, sequence.swapped_tokens = [], 0
        plan.swap_in += zip(fresh, slots, strict=False)
        sequence.registered = len(found.shared)
        sequence.computed = found.computed
        sequence.entered_length = len(sequence.tokens)

    def _take(self, plan: StepPlan, n: int) -> list[int]:
        taken = self.blocks.take(n)
        if self._doubtful:
            self._scrub(self._doubtful.intersection(taken))
        for block, block_hash in self.blocks.evicted:
            slot = self.tier.put(block_hash)
            if slot is not None:
                plan.swap_out.append((block, slot))
        self.blocks.evicted.clear()
        return taken

    # ------------------------------------------------------------ growing

    def lacks_block(self, sequence: Sequence) -> bool:
        """The position to be written lies past the last block, or in one that several sequences hold."""
        blocks, at = sequence.blocks, sequence.computed // self.blocks.block_size
        return at == len(blocks) or self.blocks.references(blocks[at]) > 1

    def give_block(self, plan: StepPlan, sequence: Sequence) -> None:
        if not self.lacks_block(sequence):
            return
        at = sequence.computed // self.blocks.block_size
        (block,) = self._take(plan, 1)
        if at == len(sequence.blocks):
            sequence.blocks.append(block)
        else:
            shared = sequence.blocks[at]
            plan.copies.append((shared, block))
            self.blocks.release([shared])
            sequence.blocks[at] = block
        plan.added_blocks.append((sequence.row, at, block))

    def room_for_drafts(self, plan: StepPlan, sequence: Sequence, count: int, *, spare: int) -> int:
        """How many of `count` places after its newest token it has own blocks for, taking some while more than `spare` are free: a guess
        must not cost anybody the block of a token that is sure to come."""
        size, first = self.blocks.block_size, sequence.computed
        for at in range(first // size, self.blocks_for(first + count)):
            if at == len(sequence.blocks) and self.blocks.free_blocks > spare:
                sequence.blocks += self._take(plan, 1)
                plan.added_blocks.append((sequence.row, at, sequence.blocks[at]))
            elif at == len(sequence.blocks) or self.blocks.references(sequence.blocks[at]) > 1:
                return max(at * size - first, 0)
        return count

    def join(self, sibling: Sequence, leader: Sequence) -> None:
        """A sequence with the same prompt holds the same blocks until it writes."""
        self.blocks.share(leader.blocks)
        sibling.blocks = list(leader.blocks)
        sibling.hashes = list(leader.hashes)
        sibling.computed, sibling.registered = leader.computed, leader.registered
        sibling.entered_length = len(sibling.tokens)

    def register(self, sequence: Sequence) -> None:
        """At planning, not after the step: keys and values of a layer are all written before any are read, so that a burst of requests
        with one prompt computes it once. A block with a token that is still being sampled waits until that is known."""
        known, computed = len(sequence.tokens), sequence.computed
        full = min(computed, known) // self.blocks.block_size
        if full > sequence.registered and self.shares_prefix(sequence):
            register_prefix(self.blocks, sequence)

    def reads_prefix(self, sequence: Sequence) -> bool:
        """Logprobs of a prompt need its hidden states, which no cache has; once they are told, blocks will do."""
        return self.shares_prefix(sequence) and sequence.prompt_told

    def shares_prefix(self, sequence: Sequence) -> bool:
        return self._prefix_caching and sequence.request.use_prefix_cache

    # ------------------------------------------------------------ going

    def preempt(self, plan: StepPlan, sequence: Sequence) -> Restore:
        """Its blocks go, copied to the host before that where coming back that way is predicted cheaper and slots are free.

        What others hold too will still be there, so it would not be computed again. The sequence takes no part in this step. It may in
        the one in flight: the device copies after that one wrote, so what is `computed` as planned is in the copy.
        """
        used = self.blocks_for(sequence.computed)
        kept = sum(1 for block in sequence.blocks[:used] if self.blocks.references(block) > 1)
        restore = choose_restore(
            tokens=max(sequence.computed - kept * self.blocks.block_size, 0),
            copied_bytes=2 * (used - kept) * self._block_bytes,
            speeds=self.speeds,
        )
        # Prompt logprobs and embeddings need hidden states of the whole prompt, which no block has.
        whole = sequence.prompt_told and not sequence.request.embedding
        if whole and restore.way == "copy" and (slots := self.swap.take(used)):
            plan.swap_out += zip(sequence.blocks, slots, strict=False)
            sequence.swapped, sequence.swapped_tokens = slots, sequence.computed
        self.leave(sequence)
        return restore

    def leave(self, sequence: Sequence) -> None:
        """What it computed since its last token may turn out not to be finite after someone else has the block, or nobody will ever know:
        a step in flight, or part of a prompt."""
        size, length = self.blocks.block_size, len(sequence.tokens)
        vouched = min(length - 1, sequence.computed) if length > sequence.entered_length else 0
        self._doubtful.difference_update(sequence.blocks[: vouched // size])
        end = max(sequence.computed, sequence.written_to)
        if vouched < end:
            written = sequence.blocks[vouched // size : self.blocks_for(end)]
            alone = [block for block in written if self.blocks.references(block) == 1]
            self._doubtful.update(block for block in alone if self.blocks.knows(block))
            self._scrub(block for block in alone if not self.blocks.knows(block))
        self.blocks.release(sequence.blocks)
        sequence.computed, sequence.registered, sequence.unasked_until, sequence.blocks = 0, 0, 0, []
        sequence.drafts, sequence.written_to = [], 0

    def drop_swapped(self, sequence: Sequence) -> None:
        self.swap.release(sequence.swapped, read=False)
        sequence.swapped, sequence.swapped_tokens = [], 0

    def distrust(self, sequence: Sequence) -> None:
        """Nobody may share what this sequence computed, and what nobody else holds is zeroed once it has left. It may have left before its
        step said that the numbers are not finite: then the prefix cache still has some of it."""
        left = [] if sequence.blocks else self.blocks.match(sequence.hashes[1:])
        self.blocks.share(left)
        self.blocks.discredit([*sequence.blocks, *left])
        self.tier.forget(sequence.hashes[1:])
        self._scrub(block for block in [*sequence.blocks, *left] if self.blocks.references(block) == 1)
        self.blocks.release(left)

    def _scrub(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._scrubs[block] = None
            self._doubtful.discard(block)

    def inherit_scrubs(self, other: "Residency") -> None:
        self._scrub(other._scrubs)
        self._doubtful |= other._doubtful

    def forget_prefixes(self) -> None:
        """On the device and on the host."""
        self.blocks.drop_cache()
        self.tier.clear()

    # ------------------------------------------------------------ what is told

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.blocks.block_size)

    def use(self, running: list[Sequence]) -> KvUse:
        size = self.blocks.block_size
        held = self.blocks.count - self.blocks.free_blocks
        filled: dict[int, int] = {}
        for sequence in running:
            first = sequence.computed // size
            for at in range(first, len(sequence.blocks)):
                block = sequence.blocks[at]
                filled[block] = max(filled.get(block, 0), sequence.computed - at * size, 0)
        return KvUse(held * size - sum(size - tokens for tokens in filled.values()), held * size, self.blocks.count * size)

    def check(self, running: list[Sequence], waiting: list[Sequence]) -> None:
        self.blocks.check([sequence.blocks for sequence in running])
        self.swap.check([sequence.swapped for sequence in waiting])
        self.tier.check()
        assert not any(sequence.swapped for sequence in running), "a running sequence has host slots"
        assert all(not sequence.blocks and sequence.row < 0 for sequence in waiting)
