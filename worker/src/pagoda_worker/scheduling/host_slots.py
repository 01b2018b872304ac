"""Host memory for KV blocks as numbers: slots of sequences that are swapped out, and slots that keep evicted prefixes.

Owns which slot holds what; the bytes lie in host_memory.py. Called by residency. Within one step all copies out come before all copies in,
so a slot that is read in a step is not written in the same one: `begin_step` ends that protection.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq


class SwapSpace:
    """Slots `0` to `count - 1`. A swapped sequence owns its slots until it is copied in or ends."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._being_read: list[int] = []

    def begin_step(self) -> None:
        self._free += reversed(self._being_read)
        self._being_read = []

    def take(self, n: int) -> list[int]:
        """All n, or none when there are fewer."""
        if n > len(self._free):
            return []
        return [self._free.pop() for _ in range(n)]

    def release(self, slots: Seq[int], *, read: bool) -> None:
        """`read`: this step copies them in."""
        if read:
            self._being_read += slots
        else:
            self._free += reversed(slots)

    def check(self, held: Seq[Seq[int]]) -> None:
        everything = [*self._free, *self._being_read, *(slot for slots in held for slot in slots)]
        assert sorted(everything) == list(range(self.count)), "a host slot is lost or owned twice"


class HostTier:
    """Slots `first` to `first + count - 1`: copies of prefix blocks that the device evicted, least recently used ones given up first."""

    def __init__(self, first: int, count: int) -> None:
        self.first = first
        self.count = count
        self._free = list(range(first + count - 1, first - 1, -1))
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()
        self._being_read: dict[bytes, int] = {}

    def begin_step(self) -> None:
        self._slot_of.update(self._being_read)
        self._being_read.clear()

    def put(self, block_hash: bytes) -> int | None:
        """The slot to copy this evicted block to; None when it is there already or every slot is being read."""
        if block_hash in self._being_read:
            return None
        if block_hash in self._slot_of:
            self._slot_of.move_to_end(block_hash)
            return None
        if self._free:
            slot = self._free.pop()
        elif self._slot_of:
            _, slot = self._slot_of.popitem(last=False)
        else:
            return None
        self._slot_of[block_hash] = slot
        return slot

    def match(self, hashes: Seq[bytes]) -> int:
        """How many of these, from the first on, are here."""
        for found, known in enumerate(hashes):
            if known not in self._slot_of and known not in self._being_read:
                return found
        return len(hashes)

    def read(self, hashes: Seq[bytes]) -> list[int]:
        """Slots of hashes that `match` counted. They stay, as the most recently used."""
        for known in hashes:
            if known in self._slot_of:
                self._being_read[known] = self._slot_of.pop(known)
        return [self._being_read[known] for known in hashes]

    def forget(self, hashes: Seq[bytes]) -> None:
        for known in hashes:
            slot = self._slot_of.pop(known, None)
            if slot is not None:
                self._free.append(slot)

    def clear(self) -> None:
        self.begin_step()
        self.forget(list(self._slot_of))

    def check(self) -> None:
        everything = [*self._free, *self._slot_of.values(), *self._being_read.values()]
        assert sorted(everything) == list(range(self.first, self.first + self.count)), "a slot of the host tier is lost or owned twice"
