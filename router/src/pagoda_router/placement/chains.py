"""Block hashes of prompts, those of a known beginning from memory: of a conversation's next turn only what is new is hashed. Pure.

Owns what it remembers, bounded in bytes. The placer (dispatch/placing.py) owns one and asks.
"""

from collections.abc import Iterator, Sequence

from pagoda_router.beginnings import LEAD, KnownBeginnings
from pagoda_router.placement.prefixes import HASH_BYTES, PrefixChain, block_hashes, chain_of, root_hash
from pagoda_router.token_ids import BYTES_PER_ID, packed

MOST_BYTES = 32 * 2**20
"""Some 35 conversations of 100 000 tokens."""
LEAST_IDS_BYTES = 2**14
"""Of a prompt that is remembered: shorter ones are hashed in a tenth of a millisecond."""
SLICE_BLOCKS = 512
"""A quarter of a millisecond of hashing."""
BYTES_PER_HASH = HASH_BYTES + 41
"""A bytes object, and its place in a tuple."""


class PrefixChains:
    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._known: KnownBeginnings[bytes, tuple[bytes, ...]] = KnownBeginnings(most_bytes)

    @property
    def held_bytes(self) -> int:
        return self._known.held_bytes

    def chain_of(
        self, prompt_ids: Sequence[int], block_size: int, salt: bytes = b"", *, tenant: str = "", adapter: str = "", label: str = ""
    ) -> PrefixChain:
        """Of the whole prompt: what only its first message keys sends every conversation with one greeting to one worker. `label`: of the
        adapter, what hashes cover."""
        *_, chain = self.in_slices(prompt_ids, block_size, salt, tenant=tenant, adapter=adapter, label=label)
        assert chain is not None, "the last slice is the whole"
        return chain

    def in_slices(
        self, prompt_ids: Sequence[int], block_size: int, salt: bytes = b"", *, tenant: str = "", adapter: str = "", label: str = ""
    ) -> Iterator[PrefixChain | None]:
        """The same, with None after each SLICE_BLOCKS, where others may go on."""
        if salt or len(prompt_ids) * BYTES_PER_ID < LEAST_IDS_BYTES:  # a salt is one request's own
            yield chain_of(prompt_ids, block_size, salt, adapter=adapter, label=label)
            return
        content, root = packed(prompt_ids), root_hash(salt, label)
        whose = tenant, block_size, root
        near = self._known.longest(whose, content)
        hashes: tuple[bytes, ...] = ()
        if near is not None:
            hashes = near.known.worked[: near.length // (block_size * BYTES_PER_ID)]
        found, blocks = [*hashes], len(prompt_ids) // block_size
        while len(found) < blocks:
            found += block_hashes(content, block_size, root, found, SLICE_BLOCKS)
            if len(found) < blocks:
                yield None
        if len(found) > len(hashes):
            hashes = tuple(found)
            self._known.remember(whose, content, hashes, len(content) + LEAD + BYTES_PER_HASH * len(hashes), near)
        yield PrefixChain(block_size, hashes, adapter)
