"""Block hashes of prompts, those of a known beginning from memory: of a conversation's next turn only what is new is hashed. Pure.

Owns what it remembers, bounded in bytes. The placer (dispatch/placing.py) owns one and asks.
"""

from collections.abc import Callable, Sequence

from pagoda_router.beginnings import LEAD, KnownBeginnings
from pagoda_router.placement.prefixes import HASH_BYTES, Grown, PrefixChain, block_hashes, chain_of, root_hash
from pagoda_router.token_ids import BYTES_PER_ID, packed

MOST_BYTES = 32 * 2**20
"""Some 35 conversations of 100 000 tokens."""
LEAST_IDS_BYTES = 2**14
"""Of a prompt that is remembered: shorter ones are hashed in a tenth of a millisecond."""
SLICE_BLOCKS = 256
"""An eighth of a millisecond of hashing, and about as much where the hashes become known."""
BYTES_PER_HASH = HASH_BYTES + 41
"""A bytes object, and its place in a list."""


class GrowingChain(PrefixChain):
    """Of a prompt whose blocks are hashed a slice at a time. To choose a worker takes no more than what some worker may have: where a
    block is known nowhere, what comes after it is known nowhere. The rest is for those that come later."""

    __slots__ = ("_blocks", "_content", "_followers", "_found", "_root", "_when_whole")

    def __init__(
        self, content: bytes, block_size: int, root: bytes, known: list[bytes], adapter: str, when_whole: Callable[[list[bytes]], None]
    ) -> None:
        """`content`: packed ids. `known`: the first blocks' hashes; this chain's from now on. `when_whole` gets all, once."""
        super().__init__(block_size, known, adapter)
        self._found = known
        self._content = content
        self._root = root
        self._blocks = len(content) // (block_size * BYTES_PER_ID)
        self._followers: list[Grown] = []
        self._when_whole = when_whole

    @property
    def is_whole(self) -> bool:
        return len(self._found) == self._blocks

    def grow(self) -> None:
        """By a slice, or what is left; those who follow have heard of it then. Not when it is whole."""
        more = block_hashes(self._content, self.block_size, self._root, self._found, SLICE_BLOCKS)
        assert more, "it was whole"
        self._found += more
        for grown in self._followers:
            grown(more)
        if self.is_whole:
            self._followers.clear()
            self._when_whole(self._found)

    def follow(self, grown: Grown) -> None:
        if not self.is_whole:
            self._followers.append(grown)


class PrefixChains:
    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._known: KnownBeginnings[bytes, list[bytes]] = KnownBeginnings(most_bytes)

    @property
    def held_bytes(self) -> int:
        return self._known.held_bytes

    def begun(
        self, prompt_ids: Sequence[int], block_size: int, salt: bytes = b"", *, tenant: str = "", adapter: str = "", label: str = ""
    ) -> PrefixChain:
        """Of the prompt, as far as it is remembered, and a slice more; whole where that is all, or a GrowingChain. Of the whole prompt in
        the end: what only its first message keys sends every conversation with one greeting to one worker. `label`: of the adapter, what
        hashes cover."""
        if len(prompt_ids) * BYTES_PER_ID < LEAST_IDS_BYTES:
            return chain_of(prompt_ids, block_size, salt, adapter=adapter, label=label)
        content, root = packed(prompt_ids), root_hash(salt, label)
        whose = tenant, block_size, root
        near = None if salt else self._known.longest(whose, content)  # a salt is one request's own
        known = [] if near is None else near.known.worked[: near.length // (block_size * BYTES_PER_ID)]

        def remember(hashes: list[bytes]) -> None:
            if not salt:
                self._known.remember(whose, content, hashes, len(content) + LEAD + BYTES_PER_HASH * len(hashes), near)

        chain = GrowingChain(content, block_size, root, known, adapter, remember)
        if not chain.is_whole:
            chain.grow()
        return chain
