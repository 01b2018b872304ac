"""Which adapters lie in the device's slots, who uses them, and which one makes way: least recently used first, never one that is in use.

Owns slots as numbers; a plan names what is to be copied where, the runner copies. Called by the roster as sequences get and leave their
rows. Knows no tensors: what an adapter's weights are is the runner's business.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One version of an adapter. Another version of the same name is another object; sequences keep theirs to their end."""

    name: str
    version: str
    """Of its content: the same files have the same one everywhere."""
    weights: object = None

    @property
    def label(self) -> str:
        """What hashes of its prefixes cover: keys and values of two versions never meet."""
        return f"{self.name}@{self.version}"


class AdapterSlots:
    def __init__(self, count: int) -> None:
        self.count = count
        self._held: list[Adapter | None] = [None] * count
        self._users = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict(dict.fromkeys(range(count)))
        """Slots that nobody uses, least recently used first."""
        self._gone: set[Adapter] = set()
        """Unloaded while in use."""
        self.changed = False
        """Another adapter lies in some slot than when this was last cleared."""

    @property
    def resident(self) -> list[Adapter]:
        return [adapter for adapter in self._held if adapter is not None]

    def has_room(self, adapter: Adapter | None) -> bool:
        """For one more sequence of it, now."""
        return adapter is None or bool(self._idle) or adapter in self._held

    def enter(self, adapter: Adapter) -> tuple[int, bool]:
        """The slot, and whether the adapter must be copied there first. `has_room` was asked."""
        if adapter in self._held:
            slot, is_new = self._held.index(adapter), False
        else:
            slot, is_new = next((slot for slot in self._idle if self._held[slot] is None), next(iter(self._idle))), True
            self._held[slot] = adapter
            self.changed = True
        self._idle.pop(slot, None)
        self._users[slot] += 1
        return slot, is_new

    def leave(self, slot: int) -> None:
        self._users[slot] -= 1
        assert self._users[slot] >= 0, f"adapter slot {slot} is left more often than entered"
        if self._users[slot] == 0:
            self._idle[slot] = None
            adapter = self._held[slot]
            if adapter in self._gone:
                self._gone.discard(adapter)
                self._held[slot] = None

    def forget(self, adapter: Adapter) -> None:
        """Nobody new will come for it: its slot is free once those that run have ended."""
        if adapter in self._held:
            slot = self._held.index(adapter)
            if self._users[slot]:
                self._gone.add(adapter)
            else:
                self._held[slot] = None

    def clear(self) -> None:
        """The slots' content is lost, or not to be trusted. Nobody may be using them."""
        assert not any(self._users), "adapter slots are in use"
        self._held = [None] * self.count
        self.changed = True

    def check(self, running: dict[int, int]) -> None:
        """`running`: sequences by slot."""
        assert {slot: users for slot, users in enumerate(self._users) if users} == running, "adapter slots are counted wrong"
        assert set(self._idle) == {slot for slot, users in enumerate(self._users) if not users}
