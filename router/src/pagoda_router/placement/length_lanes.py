"""Lanes by length: requests of like (uncached prompt, predicted output) go to the same workers, so that short ones do not share batches
with long ones. Cut from live traffic by work, as CascadeInfer (arXiv 2512.19179) splits instances into ranges; soft: they only weigh.

    requests by length   . . .. ..... ... .. .  .    .      .          .
    work, cut in equal parts |   lane 0    | lane 1 |  lane 2  |  lane 3  |     each lane has as many workers as it has work

A length counts what a request will newly fill: a long prompt that is cached is a short request. Pure; of one model's variant.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence

from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import WorkerView

MOST_LANES = 4
WINDOW = 512
FEWEST_SAMPLES = 64
REFIT_EVERY = 64
"""Requests."""
OUTPUT_WEIGHT = 2
"""Work of an output token in prompt tokens, as in VTC."""
SPREAD = 4.0
"""Of the ninth decile to the first: traffic more even than that is one lane."""
MAN_EVERY = 16
"""Requests, after which workers that came or went are noticed; until then a new one takes every length."""
MOVED = 0.25
"""Share by which a cut must differ from the one in force, twice in a row, before lanes move: caches follow lanes, and moving costs them."""

Cuts = tuple[int, ...]
"""The longest length of each lane but the last, in tokens."""


def cuts_of(samples: Sequence[tuple[int, int]], lanes: int) -> Cuts:
    """`samples`: (length, work) of requests. Every part has about the same work; fewer parts where one length has more than its share."""
    if lanes < 2 or len(samples) < FEWEST_SAMPLES:
        return ()
    ordered = sorted(samples)
    if ordered[len(ordered) * 9 // 10][0] < SPREAD * max(1, ordered[len(ordered) // 10][0]):
        return ()
    total, done = sum(work for _, work in ordered), 0
    cuts: list[int] = []
    for length, work in ordered:
        done += work
        if len(cuts) + 1 < lanes and done * lanes >= total * (len(cuts) + 1) and (not cuts or length > cuts[-1]):
            cuts.append(length)
    return tuple(cut for cut in cuts if cut < ordered[-1][0])


class LengthLanes:
    def __init__(self) -> None:
        self.cuts: Cuts = ()
        self.lane_of: Mapping[WorkerId, int] = {}
        """Of every worker; empty while there is one lane only."""
        self._samples: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        self._since_fit = 0
        self._proposed: Cuts = ()
        self._workers: tuple[tuple[int, WorkerId], ...] = ()

    def lane(self, uncached_tokens: int, output_tokens: int) -> int:
        return bisect_left(self.cuts, uncached_tokens + output_tokens)

    def observe(self, uncached_tokens: int, output_tokens: int, workers: Sequence[WorkerView]) -> None:
        """A request that was placed. Refits now and then."""
        self._samples.append((uncached_tokens + output_tokens, uncached_tokens + OUTPUT_WEIGHT * output_tokens))
        self._since_fit += 1
        if self._since_fit >= REFIT_EVERY:
            self._since_fit = 0
            self._refit(min(MOST_LANES, len(workers)))
        if self._since_fit % MAN_EVERY == 0 or not self._workers:
            self.man(workers)

    def man(self, workers: Sequence[WorkerView]) -> None:
        """Which worker is whose: equal parts, those with less KV cache in the lanes of shorter requests."""
        present = tuple(sorted((view.capacity_tokens, view.worker) for view in workers if view.routable))
        lanes = len(self.cuts) + 1
        if present == self._workers and (len(self.lane_of) > 0) == (lanes > 1):
            return
        self._workers = present
        self.lane_of = {} if lanes < 2 else {worker: at * lanes // len(present) for at, (_, worker) in enumerate(present)}

    def _refit(self, lanes: int) -> None:
        capacities = [capacity for capacity, _ in self._workers]
        found = cuts_of(self._samples, lanes)
        if capacities and len(capacities) >= len(found) + 1:
            # What a lane's smallest worker cannot hold belongs to the next lane.
            smallest = [capacities[-(-at * len(capacities) // (len(found) + 1))] for at in range(len(found))]
            found = tuple(sorted({min(cut, capacity) for cut, capacity in zip(found, smallest, strict=True)}))
        if _differ(found, self.cuts) and not _differ(found, self._proposed):
            self.cuts, self._workers = found, ()
        self._proposed = found


def _differ(some: Cuts, others: Cuts) -> bool:
    return len(some) != len(others) or any(abs(one - other) > MOVED * max(1, other) for one, other in zip(some, others, strict=True))
