"""Block hashes of prompts, those of a known beginning from memory: of a conversation's next turn only what is new is hashed. Pure.

Owns what it remembers, bounded in bytes. The placer (dispatch/placing.py) owns one and asks.
"""

from collections.abc import Sequence

from pagoda_router.beginnings import LEAD, KnownBeginnings
from pagoda_router.placement.prefixes import HASH_BYTES, PrefixChain, block_hashes, chain_of, root_hash
from pagoda_router.token_ids import BYTES_PER_ID, packed

MOST_BYTES = 32 * 2**20
"""Some 35 conversations of 100 000 tokens."""
LEAST_IDS_BYTES = 2**14
"""Of a prompt that is remembered: shorter ones are hashed in a tenth of a millisecond."""
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
        if salt or len(prompt_ids) * BYTES_PER_ID < LEAST_IDS_BYTES:  # a salt is one request's own
            return chain_of(prompt_ids, block_size, salt, adapter=adapter, label=label)
        content, root = packed(prompt_ids), root_hash(salt, label)
        whose = tenant, block_size, root
        near = self._known.longest(whose, content)
        hashes: tuple[bytes, ...] = ()
        if near is not None:
            hashes = near.known.worked[: near.length // (block_size * BYTES_PER_ID)]
        rest = block_hashes(content, block_size, root, hashes)
        if rest:
            hashes = (*hashes, *rest)
            self._known.remember(whose, content, hashes, len(content) + LEAD + BYTES_PER_HASH * len(hashes), near)
        return PrefixChain(block_size, hashes, adapter)
