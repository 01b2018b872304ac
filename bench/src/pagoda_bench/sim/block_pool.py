"""One simulated worker's KV blocks: free, held by sequences, or idle with known contents, the idle ones evicted longest unused first. Pure.

    count = free + own + held + idle        own: of sequences, contents not shared yet; held: shared prefix blocks in use

As the engine's blocks.py, without tensors: contents are hashes. Owned by worker.py, which is told what was stored and evicted.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._held: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        """Longest unused first."""
        self.stored: list[bytes] = []
        self.evicted: list[bytes] = []
        """Since the last cache event."""

    @property
    def available(self) -> int:
        return self.free + len(self._idle)

    def cached_blocks(self, hashes: Sequence[bytes]) -> int:
        """Of the beginning of this chain."""
        for at, each in enumerate(hashes):
            if each not in self._held and each not in self._idle:
                return at
        return len(hashes)

    def idle_among(self, hashes: Iterable[bytes]) -> int:
        """Of cached ones, those that nobody holds: whoever takes them leaves so many fewer available."""
        return sum(each in self._idle for each in hashes)

    def hold(self, hashes: Iterable[bytes]) -> int:
        """Of cached ones. Returns how many were idle and are available no more."""
        woken = 0
        for each in hashes:
            if each in self._idle:
                del self._idle[each]
                woken += 1
                self._held[each] = 1
            else:
                self._held[each] += 1
        return woken

    def take(self, blocks: int) -> bool:
        """For contents of a sequence's own. False when there are not so many, and nothing is taken."""
        if blocks > self.available:
            return False
        while self.free < blocks:
            self.evicted.append(self._idle.popitem(last=False)[0])
            self.free += 1
        self.free -= blocks
        return True

    def share(self, hashes: Iterable[bytes]) -> None:
        """Own blocks that are full now: others may hold them. Where another sequence computed the same first, one of the two is free."""
        for each in hashes:
            if each in self._held:
                self._held[each] += 1
                self.free += 1
            elif each in self._idle:
                del self._idle[each]
                self._held[each] = 1
                self.free += 1
            else:
                self._held[each] = 1
                self.stored.append(each)

    def release(self, hashes: Sequence[bytes], own_blocks: int) -> None:
        """A sequence is over. Of one chain the end before the beginning, so that the end is evicted first."""
        self.free += own_blocks
        for each in reversed(hashes):
            uses = self._held[each] - 1
            if uses:
                self._held[each] = uses
            else:
                del self._held[each]
                self._idle[each] = None
