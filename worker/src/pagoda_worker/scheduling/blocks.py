"""Pages of the KV cache as numbers: who holds which block, which blocks hold which prefix.

Owns reference counts, the free list and the map from chained hash to block. Knows neither tensors nor requests. Called by the scheduler.

    blocks of one sequence, by position     [ shared prefix | own, full | own, filling ]
    who may write                             nobody          nobody      this sequence (copied first while several hold it)
    what releasing does                       references - 1  to the LRU  to the free stack
"""

import array
import hashlib
import sys
from collections import OrderedDict
from collections.abc import Sequence as Seq

from pagoda_worker.request import CacheChanges

HASH_VERSION = 1
"""blake2b-128 over (parent hash, token ids as u32 little-endian); the root covers salt and adapter, each with its length before it."""


def root_hash(salt: bytes, adapter: str = "") -> bytes:
    """The parent of first blocks: prefixes under different salts or adapters never meet."""
    name = adapter.encode()
    framed = len(salt).to_bytes(4, "little") + salt + len(name).to_bytes(4, "little") + name
    return hashlib.blake2b(framed, digest_size=16).digest()


def chain_hash(parent: bytes, ids: Seq[int]) -> bytes:
    words = array.array("I", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return hashlib.blake2b(parent + words.tobytes(), digest_size=16).digest()


class BlockPool:
    """`count` blocks of `block_size` tokens. Each block is held (references ≥ 1), cached (a known prefix, evictable) or free."""

    def __init__(self, count: int, block_size: int) -> None:
        self.count = count
        self.block_size = block_size
        self._references = [0] * count
        self._free = list(range(count - 1, -1, -1))
        """A stack: a freshly started engine hands out neighbouring blocks, which the device reads fastest."""
        self._evictable: OrderedDict[int, None] = OrderedDict()
        """Cached blocks that nobody holds, least recently released first."""
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.keep_evicted = False
        self.evicted: list[tuple[int, bytes]] = []
        """With keep_evicted: (block, hash) of prefixes that `take` gave up, for the caller to save and clear."""
        self._changed: dict[bytes, bool] = {}
        """Known (or not) since `take_changes`, in the order of the last change of each: bounded by it being called after every step."""
        self._cleared = False

    @property
    def free_blocks(self) -> int:
        """Free or evictable: what `take` can give."""
        return len(self._free) + len(self._evictable)

    def references(self, block: int) -> int:
        return self._references[block]

    def knows(self, block: int) -> bool:
        """It holds a prefix that `match` can find."""
        return block in self._hash_of

    def take(self, n: int) -> list[int]:
        """n blocks with one reference each; evicts the least recently used cached prefixes when nothing is free."""
        assert n <= self.free_blocks, "the caller checks free_blocks first"
        return [self._take_one() for _ in range(n)]

    def _take_one(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            if self.keep_evicted:
                self.evicted.append((block, self._hash_of[block]))
            self._forget_hash(block)
        self._references[block] = 1
        return block

    def match(self, hashes: Seq[bytes]) -> list[int]:
        """The blocks of the longest known prefix. Takes no references: `share` does."""
        found: list[int] = []
        for known in hashes:
            block = self._block_of.get(known)
            if block is None:
                break
            found.append(block)
        return found

    def evictable_among(self, blocks: Seq[int]) -> int:
        """How many of these `share` would take out of `free_blocks`."""
        return sum(1 for block in blocks if self._references[block] == 0)

    def share(self, blocks: Seq[int]) -> None:
        for block in blocks:
            if self._references[block] == 0:
                del self._evictable[block]
            self._references[block] += 1

    def release(self, blocks: Seq[int]) -> None:
        """Last block first: the end of a prefix is evicted before its beginning, which more requests share."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, f"block {block} released more often than taken"
            if self._references[block] == 0:
                if block in self._hash_of:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def register(self, block: int, block_hash: bytes) -> None:
        """The block is full and its content computed (or will be by the step being planned). The first block with a hash keeps it."""
        if block_hash not in self._block_of and block not in self._hash_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash
            self._note(block_hash, known=True)

    def discredit(self, blocks: Seq[int]) -> None:
        """The content of these held blocks is not to be shared any more (a step went wrong)."""
        for block in blocks:
            self._forget_hash(block)

    def _forget_hash(self, block: int) -> None:
        known = self._hash_of.pop(block, None)
        if known is not None:
            del self._block_of[known]
            self._note(known, known=False)

    def _note(self, block_hash: bytes, *, known: bool) -> None:
        self._changed.pop(block_hash, None)
        self._changed[block_hash] = known

    def take_changes(self) -> CacheChanges | None:
        """Of what `match` finds, since the last call."""
        if not self._changed and not self._cleared:
            return None
        removed = [] if self._cleared else [each for each, known in self._changed.items() if not known]
        changes = CacheChanges(self._cleared, removed, [each for each, known in self._changed.items() if known])
        self._changed, self._cleared = {}, False
        return changes

    def drop_cache(self) -> None:
        """Forgets every prefix; held blocks stay held."""
        self._free.extend(self._evictable)
        self._evictable.clear()
        self._hash_of.clear()
        self._block_of.clear()
        self._changed, self._cleared = {}, True

    def check(self, held: Seq[Seq[int]]) -> None:
        """Asserts that the given holders and the pool agree on every block."""
        expected = [0] * self.count
        for blocks in held:
            assert len(set(blocks)) == len(blocks), f"a sequence holds a block twice: {blocks}"
            for block in blocks:
                expected[block] += 1
        assert expected == self._references, "reference counts differ from the holders'"
        free, evictable = set(self._free), set(self._evictable)
        assert len(free) == len(self._free)
        assert not free & evictable
        assert free | evictable == {block for block in range(self.count) if expected[block] == 0}, "a block is lost"
        assert evictable == {block for block in self._hash_of if expected[block] == 0}
        assert self._block_of == {known: block for block, known in self._hash_of.items()}
