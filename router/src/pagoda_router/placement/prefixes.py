"""Which prefixes a worker's cache holds, as far as this router knows: chained block hashes, the same as the worker's own. Pure.

Written at every decision at once, before the worker has computed anything, so that the next request with the same beginning finds it; taken
back where the request never began; corrected by the worker's cache events. One KnownPrefixes per worker and session (a lost session forgets
it), owned by the session's WorkerKnowledge, of other backends by the link.

    prompt   [ block 0 | block 1 | block 2 | rest ]      block_size tokens each
    chain      h0        h1        h2                    h0 = hash(root(salt, adapter), ids), h1 = hash(h0, ids), …

A chain is closed under prefixes: who knows h2 knows h0 and h1. So how much of a prompt is known takes a binary search, and what must go
when memory is full is the end of the chain that was used longest ago.
"""

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from pagoda_router.placement.prefix_tree import PrefixTree
from pagoda_router.records import record
from pagoda_router.token_ids import BYTES_PER_ID, packed

HASH_VERSION = 1
"""Of the worker's blocks.py: blake2b-128 over (parent, ids as u32 little-endian); the root covers salt and adapter, with lengths."""
HASH_BYTES = 16
MOST_BLOCKS = 262_144
"""Known of one worker, whatever its cache holds: some 25 MB of this process, four million tokens of 16 to a block."""
MARK_BLOCKS = 64


Grown = Callable[[Sequence[bytes]], None]
"""Hears the hashes that came, after they did."""


@record(frozen=True, slots=True)
class PrefixChain:
    """The hashes of a prompt's full blocks, in order. Of a long one possibly its first alone, for a while (chains.py GrowingChain)."""

    block_size: int
    hashes: Sequence[bytes]
    adapter: str = ""
    """Whose keys and values they are, by name; empty: the base model's."""

    @property
    def is_whole(self) -> bool:
        return True

    def follow(self, grown: Grown) -> None:
        """Of a whole one nobody hears anything."""


NO_CHAIN = PrefixChain(1, ())


def root_hash(salt: bytes, adapter: str = "") -> bytes:
    if not (salt or adapter):
        return USUAL_ROOT
    return _root_hash(salt, adapter)


def _root_hash(salt: bytes, adapter: str) -> bytes:
    name = adapter.encode()
    framed = len(salt).to_bytes(4, "little") + salt + len(name).to_bytes(4, "little") + name
    return hashlib.blake2b(framed, digest_size=HASH_BYTES).digest()


USUAL_ROOT = _root_hash(b"", "")


def chain_of(prompt_ids: Sequence[int], block_size: int, salt: bytes = b"", *, adapter: str = "", label: str = "") -> PrefixChain:
    """Without any memory; PrefixChains has one. `label`: of the adapter, what hashes cover."""
    return PrefixChain(block_size, block_hashes(packed(prompt_ids), block_size, root_hash(salt, label)), adapter)


def block_hashes(content: bytes, block_size: int, root: bytes, known: Sequence[bytes] = (), most: int | None = None) -> list[bytes]:
    """Of the full blocks of packed ids, or of so many, that come after `known`, which are the first blocks' own."""
    step, blake2b = block_size * BYTES_PER_ID, hashlib.blake2b
    parent, hashes = known[-1] if known else root, []
    end = len(content) // step
    for start in range(len(known) * step, (end if most is None else min(end, len(known) + most)) * step, step):
        parent = blake2b(parent + content[start : start + step], digest_size=HASH_BYTES).digest()
        hashes.append(parent)
    return hashes


class KnownPrefixes:
    def __init__(self, block_size: int, most_blocks: int = MOST_BLOCKS) -> None:
        self.block_size = block_size
        self.most_blocks = max(1, min(most_blocks, MOST_BLOCKS))
        self._used = PrefixTree()
        """Of prompts that this router sent there."""
        self._told: OrderedDict[bytes, None] = OrderedDict()
        """Others, by the worker's word alone, the latest last; of one chain the end before the beginning: the end is forgotten first. A
        plain dict keeps the places of what left its front, and looks at all of them for its first key each time."""
        self._unconfirmed: set[bytes] = set()
        """Of those used: expected of requests on their way."""
        self._gone: set[bytes] = set()
        """Of those used: no longer there, while something that follows them still is."""
        self._held: dict[bytes, int] = {}
        """Marks of the prompts of requests of ours on their way or running there: how many of those end with the mark, and how many other
        marks follow it directly. So a prompt counts only where it leaves what is held already."""

    def __len__(self) -> int:
        return len(self._used) + len(self._told) - len(self._gone)

    def __contains__(self, block: bytes) -> bool:
        return (block in self._used and block not in self._gone) or block in self._told

    def cached_tokens(self, chain: PrefixChain) -> int:
        """Of the prompt, in whole blocks; 0 where blocks have another size."""
        return 0 if chain.block_size != self.block_size else self._cached_blocks(chain.hashes) * self.block_size

    def _cached_blocks(self, hashes: Sequence[bytes]) -> int:
        if not hashes or hashes[0] not in self:
            return 0
        if hashes[-1] in self:
            return len(hashes)
        return bisect_left(range(len(hashes)), True, key=lambda at: hashes[at] not in self)

    def held_tokens(self, chain: PrefixChain) -> int:
        """Of the prompt, in blocks that requests of ours on their way or running there hold: they stay, whatever memory is short of. Where
        they leave a longer one between two marks, up to the mark before."""
        hashes, held = chain.hashes, self._held
        if not hashes or not held or chain.block_size != self.block_size:
            return 0
        ends = hashes[MARK_BLOCKS - 1 :: MARK_BLOCKS]
        marked = MARK_BLOCKS * bisect_left(range(len(ends)), True, key=lambda at: ends[at] not in held) if ends else 0
        rest = hashes[marked : marked + MARK_BLOCKS]
        return (marked + bisect_left(range(len(rest)), True, key=lambda at: rest[at] not in held)) * self.block_size

    def expect(self, chain: PrefixChain) -> "Expectation":
        """A request with this prompt goes to the worker, which will know it. Of a chain that grows the rest is expected as it comes."""
        if chain.block_size != self.block_size:
            return Expectation(self, ())
        hashes = chain.hashes
        self.used(hashes, is_confirmed=False)
        self.hold(hashes)
        expectation = Expectation(self, hashes)
        chain.follow(expectation.grown)
        return expectation

    def used(self, hashes: Sequence[bytes], *, is_confirmed: bool) -> None:
        """By a request with a prompt that begins so, or is so."""
        new = self._use(hashes)
        if not is_confirmed:
            self._unconfirmed.update(new)
        self._bound()

    def hold(self, hashes: Sequence[bytes]) -> None:
        """A request with this prompt is on its way, until `let_go`."""
        for each in reversed(_marks(hashes)):
            self._held[each] = count = self._held.get(each, 0) + 1
            if count > 1:
                break

    def let_go(self, hashes: Sequence[bytes]) -> None:
        """Such a request is over."""
        for each in reversed(_marks(hashes)):
            if (count := self._held[each] - 1) > 0:
                self._held[each] = count
                break
            del self._held[each]

    def withdraw(self, hashes: Sequence[bytes]) -> None:
        """Such a request never began. What another one made true meanwhile, or goes on from, stays."""
        used, is_end = self._used, False
        for block in reversed(hashes):
            if is_end or block not in used or block not in self._unconfirmed or used.is_followed(block):
                break
            is_end = used.is_end(used.parent(block))
            self._forget(block)

    def begun(self, hashes: Sequence[bytes]) -> None:
        """The prefill of such a request did: all of it is there, or will be."""
        self._use(hashes)
        for block in reversed(hashes):
            if block not in self._unconfirmed:
                break
            self._unconfirmed.remove(block)
        self._bound()

    def stored(self, hashes: Sequence[bytes]) -> None:
        """By the worker's word; of one chain in its order."""
        for block in reversed(hashes):
            if block in self._used:
                self._unconfirmed.discard(block)
                self._gone.discard(block)
            else:
                self._told.pop(block, None)
                self._told[block] = None
        self._bound()

    def removed(self, hashes: Iterable[bytes]) -> None:
        for block in hashes:
            self._told.pop(block, None)
            if block in self._used:
                self._gone.add(block)
                while block in self._gone and not self._used.is_followed(block):
                    before = self._used.parent(block)
                    self._forget(block)
                    block = before

    def clear(self) -> None:
        for each in (self._used, self._told, self._unconfirmed, self._gone):
            each.clear()

    def _use(self, hashes: Sequence[bytes]) -> Sequence[bytes]:
        """Returns those that nobody knew."""
        if not hashes:
            return ()
        if self._gone:
            self._gone.difference_update(hashes[self._cached_blocks(hashes) :])
        told = self._told
        return [block for block in self._used.use(hashes) if told.pop(block, self) is self] if told else self._used.use(hashes)

    def _forget(self, block: bytes) -> None:
        """One that nothing follows."""
        self._used.remove(block)
        self._unconfirmed.discard(block)
        self._gone.discard(block)

    def _bound(self) -> None:
        while self._told and len(self._used) + len(self._told) > self.most_blocks:
            self._told.popitem(last=False)
        while (too_many := len(self._used) - self.most_blocks) > 0:
            removed = self._used.remove_oldest(too_many)
            self._unconfirmed.difference_update(removed)
            self._gone.difference_update(removed)


def _marks(hashes: Sequence[bytes]) -> Sequence[bytes]:
    """Where a prompt is counted as held: at the end of every MARK_BLOCKS, and at each of its blocks after the last such. At every block a
    prompt of 100 000 tokens would take a millisecond."""
    whole = len(hashes) // MARK_BLOCKS * MARK_BLOCKS
    return (*hashes[MARK_BLOCKS - 1 : whole : MARK_BLOCKS], *hashes[whole:])


class Expectation:
    """What one request on its way is expected to leave in the cache."""

    def __init__(self, prefixes: KnownPrefixes, hashes: Sequence[bytes]) -> None:
        """`hashes`: used and held."""
        self._prefixes = prefixes
        self._hashes = hashes
        """The chain's own: more, each time it grew."""
        self._held_blocks = len(hashes)
        self._has_begun = self._is_over = False

    def grown(self, more: Sequence[bytes]) -> None:
        """Its chain did, by these. What was computed stays in the cache, so even when the request is over already."""
        if self._has_begun or not self._is_over:
            self._prefixes.used(self._hashes, is_confirmed=self._has_begun)
        if not self._is_over:
            self._prefixes.let_go(self._hashes[: self._held_blocks])
            self._prefixes.hold(self._hashes)
            self._held_blocks = len(self._hashes)

    def begun(self) -> None:
        """Its prefill did."""
        self._has_begun = True
        self._prefixes.begun(self._hashes)

    def over(self) -> None:
        """Once."""
        self._is_over = True
        if not self._has_begun:
            self._prefixes.withdraw(self._hashes)
        self._prefixes.let_go(self._hashes[: self._held_blocks])


def split_hashes(packed: bytes) -> list[bytes]:
    """Of a cache event."""
    return [packed[start : start + HASH_BYTES] for start in range(0, len(packed) - HASH_BYTES + 1, HASH_BYTES)]
