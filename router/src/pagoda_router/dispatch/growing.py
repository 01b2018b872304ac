"""The rest of long prompts' block hashes, worked out once their requests are on their way: a slice a turn of the event loop.

So a new prompt's first token waits for one slice and not for all. What comes meanwhile and begins alike must find all of it that it would
have found: `needed_by` tells the placer what has to grow first. Owned by the placer (placing.py).
"""

import asyncio

from pagoda_router.placement.chains import GrowingChain
from pagoda_router.placement.prefixes import PrefixChain


class GrowingChains:
    def __init__(self) -> None:
        self._growing: dict[bytes, GrowingChain] = {}
        """By their first hash, in order of coming. Of two that begin alike the later is placed, and so added, once the first is whole or
        has grown past where they part."""
        self._is_due = False

    def __len__(self) -> int:
        return len(self._growing)

    def add(self, chain: PrefixChain) -> None:
        """Its request was just submitted."""
        if isinstance(chain, GrowingChain) and not chain.is_whole:
            self._growing[chain.hashes[0]] = chain
            self._go_on()

    def needed_by(self, chain: PrefixChain) -> GrowingChain | None:
        """Another that has, as far as it grew, all that this one begins with, so that more of it may be this one's too."""
        other = self._growing.get(chain.hashes[0]) if chain.hashes and self._growing else None
        if other is None or other is chain or other.is_whole:
            return None
        reached = len(other.hashes)
        return other if reached < len(chain.hashes) and other.hashes[-1] == chain.hashes[reached - 1] else None

    def _go_on(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_due = False
        first, chain = next(iter(self._growing.items()))
        if not chain.is_whole:
            chain.grow()
        if chain.is_whole:
            del self._growing[first]
        if self._growing:
            self._go_on()
