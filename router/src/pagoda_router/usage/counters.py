"""Usage by hour, key and model that the database does not have yet. Pure: requests add to it, batches leave it.

A batch stays the same until the store has confirmed it, whatever comes in the meantime: so it may be written again after a failure that
may have been a success, and the store, which knows its number, counts it once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import add
from typing import NamedTuple

from pagoda_router.usage.amounts import Amount, Used
from pagoda_router.usage.months import Month


class Place(NamedTuple):
    """Where usage is counted."""

    hour_unix_s: int
    key_id: str
    model: str
    tenant: str


class Counted(NamedTuple):
    requests: int
    used: Used


@dataclass(frozen=True, slots=True)
class Batch:
    number: int
    """Of this writer's; larger than any before."""
    counted: dict[Place, Counted]

    def amounts(self, month: Month) -> Iterator[tuple[str, Amount]]:
        """By key id, of the hours in this month."""
        for place, counted in self.counted.items():
            if month.holds(place.hour_unix_s):
                yield place.key_id, counted.used.amount


class UsageCounters:
    def __init__(self) -> None:
        self._counted: dict[Place, list[int]] = {}
        """Requests, then what they used in the order of Used: changed in place, since every request adds to it."""
        self._leaving: Batch | None = None
        self._batches = 0

    def add(self, place: Place, requests: int, used: Used) -> None:
        """More of it; tokens may be negative, where a guess was counted before."""
        counted = self._counted.get(place)
        self._counted[place] = [requests, *used] if counted is None else list(map(add, counted, (requests, *used)))

    def batch(self) -> Batch | None:
        """What is to be written next: the one that was not confirmed, or all that is new. None: nothing."""
        if self._leaving is None and self._counted:
            self._batches += 1
            counted = {place: Counted(requests, Used(*used)) for place, (requests, *used) in self._counted.items()}
            self._leaving, self._counted = Batch(self._batches, counted), {}
        return self._leaving

    @property
    def has_more(self) -> bool:
        """Besides the batch that leaves."""
        return bool(self._counted)

    def confirm(self) -> None:
        self._leaving = None
