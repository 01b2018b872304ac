"""Which prefixes a worker's cache holds, as far as this router knows: chained block hashes, the same as the worker's own. Pure.

Written at every decision at once, before the worker has computed anything, so that the next request with the same beginning finds it; taken
back where the request never began; corrected by the worker's cache events. One KnownPrefixes per worker and session (a lost session forgets
it), owned by the session's WorkerKnowledge, of other backends by the link.

    prompt   [ block 0 | block 1 | block 2 | rest ]      block_size tokens each
    chain      h0        h1        h2                    h0 = hash(root(salt, adapter), ids), h1 = hash(h0, ids), …

A chain is closed under prefixes: who knows h2 knows h0 and h1. So how much of a prompt is known takes a binary search, and what must go
when memory is full is the end of the chain that was used longest ago.
"""

import array
import hashlib
import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HASH_VERSION = 1
"""Of the worker's blocks.py: blake2b-128 over (parent, ids as u32 little-endian); the root covers salt and adapter, with lengths."""
HASH_BYTES = 16
MOST_BLOCKS = 262_144
"""Known of one worker, whatever its cache holds: some 30 MB of this process, four million tokens of 16 to a block."""


@dataclass(frozen=True, slots=True)
class PrefixChain:
    """The hashes of a prompt's full blocks, in order."""

    block_size: int
    hashes: tuple[bytes, ...]
    adapter: str = ""
    """Whose keys and values they are, by name; empty: the base model's."""


NO_CHAIN = PrefixChain(1, ())


def root_hash(salt: bytes, adapter: str = "") -> bytes:
    name = adapter.encode()
    framed = len(salt).to_bytes(4, "little") + salt + len(name).to_bytes(4, "little") + name
    return hashlib.blake2b(framed, digest_size=HASH_BYTES).digest()


def chain_of(prompt_ids: Sequence[int], block_size: int, salt: bytes = b"", *, adapter: str = "", label: str = "") -> PrefixChain:
    """`label`: of the adapter, what hashes cover.

    Of the whole prompt: what only its first message keys sends every conversation with one greeting to one worker."""
    words = array.array("I", prompt_ids[: len(prompt_ids) // block_size * block_size])
    if sys.byteorder == "big":
        words.byteswap()
    content, step = words.tobytes(), block_size * words.itemsize
    parent, hashes = root_hash(salt, label), []
    for start in range(0, len(content), step):
        parent = hashlib.blake2b(parent + content[start : start + step], digest_size=HASH_BYTES).digest()
        hashes.append(parent)
    return PrefixChain(block_size, tuple(hashes), adapter)


class KnownPrefixes:
    def __init__(self, block_size: int, most_blocks: int = MOST_BLOCKS) -> None:
        self.block_size = block_size
        self.most_blocks = max(1, min(most_blocks, MOST_BLOCKS))
        self._known: dict[bytes, bool] = {}
        """In order of use, latest last; of one chain the end before the beginning, so that the end is forgotten first. True: the worker
        computed it. False: expected of a request on its way."""
        self._holders: dict[bytes, int] = {}
        """Requests of this router with that block in their prompt, bounded by what runs."""

    def __len__(self) -> int:
        return len(self._known)

    def cached_tokens(self, chain: PrefixChain) -> int:
        """Of the prompt, in whole blocks; 0 where blocks have another size."""
        hashes, known = chain.hashes, self._known
        if not hashes or hashes[0] not in known or chain.block_size != self.block_size:
            return 0
        least, most = 1, len(hashes)
        if hashes[-1] in known:
            return most * self.block_size
        while least < most:
            middle = (least + most + 1) // 2
            if hashes[middle - 1] in known:
                least = middle
            else:
                most = middle - 1
        return least * self.block_size

    def held_tokens(self, chain: PrefixChain) -> int:
        """Of the prompt, in blocks that requests of ours on their way or running there hold: they stay, whatever memory is short of."""
        hashes, held = chain.hashes, self._holders
        if not hashes or hashes[0] not in held or chain.block_size != self.block_size:
            return 0
        return bisect_left(range(len(hashes)), True, key=lambda at: hashes[at] not in held) * self.block_size

    def expect(self, chain: PrefixChain) -> "Expectation":
        """A request with this prompt goes to the worker, which will know it."""
        hashes = chain.hashes if chain.block_size == self.block_size else ()
        new = tuple(each for each in hashes if each not in self._known)
        self._use(hashes, is_stored=False)
        for each in hashes:
            self._holders[each] = self._holders.get(each, 0) + 1
        return Expectation(self, hashes, new)

    def let_go(self, hashes: Iterable[bytes]) -> None:
        """Such a request is over."""
        for each in hashes:
            if (count := self._holders[each] - 1) > 0:
                self._holders[each] = count
            else:
                del self._holders[each]

    def withdraw(self, hashes: Iterable[bytes]) -> None:
        """Such a request never began, and these were new. What another one made true meanwhile stays."""
        for each in hashes:
            if self._known.get(each) is False:
                del self._known[each]

    def stored(self, hashes: Sequence[bytes]) -> None:
        """In the order of their chain."""
        self._use(hashes, is_stored=True)

    def removed(self, hashes: Iterable[bytes]) -> None:
        for each in hashes:
            self._known.pop(each, None)

    def clear(self) -> None:
        self._known.clear()

    def _use(self, hashes: Sequence[bytes], *, is_stored: bool) -> None:
        known = self._known
        for each in reversed(hashes):
            known[each] = known.pop(each, False) or is_stored
        while len(known) > self.most_blocks:
            del known[next(iter(known))]


class Expectation:
    """What one request on its way is expected to leave in the cache."""

    def __init__(self, prefixes: KnownPrefixes, hashes: Sequence[bytes], new: Sequence[bytes]) -> None:
        self._prefixes = prefixes
        self._hashes = hashes
        self._new = new

    def begun(self) -> None:
        """Its prefill did."""
        self._prefixes.stored(self._hashes)
        self._new = ()

    def over(self) -> None:
        """Once."""
        self._prefixes.withdraw(self._new)
        self._prefixes.let_go(self._hashes)


def split_hashes(packed: bytes) -> list[bytes]:
    """Of a cache event."""
    return [packed[start : start + HASH_BYTES] for start in range(0, len(packed) - HASH_BYTES + 1, HASH_BYTES)]
