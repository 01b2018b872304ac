"""Chains of block hashes as a tree, in order of use: adding, refreshing or giving one up costs what is its own, however long it is. Pure.

    h0 ── h1 ── h2 ── h3          each block knows the one before it, and how many follow it
                 └── h4 ── h5     ends: h3, h5, in order of use; a block that others follow stays with them

placement/prefixes.py calls it; knows no worker.
"""

from collections import OrderedDict
from collections.abc import Sequence


class PrefixTree:
    """Whoever is in it, so is all that comes before it in its chain."""

    def __init__(self) -> None:
        self._parents: dict[bytes, bytes] = {}
        """Of each block the one before it; of a first one an empty name."""
        self._followers: dict[bytes, int] = {}
        """How many follow it, where that is not one, as of nearly all: a long chain is added by one update of `_parents`."""
        self._ends: OrderedDict[bytes, None] = OrderedDict()
        """Where chains end, the one used last at the end; every block that nothing follows is one."""

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, block: bytes) -> bool:
        return block in self._parents

    def use(self, chain: Sequence[bytes]) -> Sequence[bytes]:
        """The chain is the latest now. Returns those of its blocks that are new, which are its last ones."""
        parents = self._parents
        start = len(chain)
        while start and chain[start - 1] not in parents:
            start -= 1
        if start < len(chain):
            before, new = chain[start - 1] if start else b"", chain[start:]
            if start:
                self._follow(before)
                self._ends.pop(before, None)  # it goes on as this chain
            parents.update(zip(new, (before, *new[:-1]), strict=True))
            self._followers[new[-1]] = 0
        self._ends[chain[-1]] = None
        self._ends.move_to_end(chain[-1])
        return chain[start:]

    def parent(self, block: bytes) -> bytes:
        return self._parents[block]

    def is_end(self, block: bytes) -> bool:
        return block in self._ends

    def is_followed(self, block: bytes) -> bool:
        return self._followers.get(block, 1) > 0

    def _follow(self, block: bytes) -> None:
        """One more does."""
        count = self._followers.pop(block, 1) + 1
        if count != 1:
            self._followers[block] = count

    def _unfollow(self, block: bytes) -> bool:
        """One less does; True where none is left."""
        count = self._followers.pop(block, 1) - 1
        if count != 1:
            self._followers[block] = count
        return count == 0

    def remove(self, block: bytes) -> None:
        """One that nothing follows. What it followed may be the end of a chain now, as one that is the oldest."""
        before = self._parents.pop(block)
        del self._followers[block]
        self._ends.pop(block, None)
        if before and self._unfollow(before) and before not in self._ends:
            self._ends[before] = None
            self._ends.move_to_end(before, last=False)

    def remove_oldest(self, most: int) -> list[bytes]:
        """From the end of the chain that was used longest ago, up to so many blocks: as far as no other chain needs them. As many calls of
        `remove` would do the same, for twice the time. Not of an empty tree."""
        parents, followers, ends = self._parents, self._followers, self._ends
        while self.is_followed(block := next(iter(ends))):
            del ends[block]  # a longer chain has it
        del ends[block], followers[block]
        removed = [block]
        while before := parents.pop(block):
            if before in followers:
                self._unfollow(before)  # others follow it still
                break
            if before in ends or len(removed) == most:
                followers[before] = 0
                if before not in ends:
                    ends[before] = None
                    ends.move_to_end(before, last=False)
                break
            removed.append(block := before)
        return removed

    def clear(self) -> None:
        for each in (self._parents, self._followers, self._ends):
            each.clear()
