"""The rest of long prompts' block hashes, worked out once their requests are on their way: a slice now and then.

So a new prompt's first token, which takes some turns of the event loop, waits for one slice at most and not for all. What comes meanwhile
and begins alike must find all of it that it would have found: `needed_by` tells the placer what has to grow first. Owned by the placer
(placing.py).
"""

import asyncio
from collections import deque

from pagoda_router.placement.chains import GrowingChain
from pagoda_router.placement.prefixes import PrefixChain

PAUSE_S = 0.002
"""Between two slices, while others have their turns: a slice takes a sixth of that."""
MANY = 8
"""Chains, from which on there is no pause: they must not come faster than they grow."""


class GrowingChains:
    def __init__(self) -> None:
        self._growing: deque[GrowingChain] = deque()
        """In order of coming; a few at most, as each is whole after some turns."""
        self._is_due = False

    def __len__(self) -> int:
        return len(self._growing)

    def add(self, chain: PrefixChain) -> None:
        """Its request was just submitted."""
        if isinstance(chain, GrowingChain) and not chain.is_whole:
            self._growing.append(chain)
            self._go_on()

    def needed_by(self, chain: PrefixChain) -> GrowingChain | None:
        """Another that has, as far as it grew, all that this one begins with, so that more of it may be this one's too."""
        for other in self._growing:
            reached = len(other.hashes)
            if reached < len(chain.hashes) and not other.is_whole and other.hashes[-1] == chain.hashes[reached - 1]:
                return other
        return None

    def _go_on(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_later(PAUSE_S if len(self._growing) < MANY else 0.0, self._turn)

    def _turn(self) -> None:
        self._is_due = False
        chain = self._growing[0]
        if not chain.is_whole:  # another may have needed it
            chain.grow()
        if chain.is_whole:
            self._growing.popleft()
        if self._growing:
            self._go_on()
