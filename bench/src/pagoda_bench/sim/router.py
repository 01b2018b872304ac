"""The router's side of the simulation: its real price, output prediction, waiting room, tenants, drain rate, chooser and policies.

Only what talks is replaced: links tell what simulated workers said (link.py), refusals are counted instead of sent. The loop calls it, and
hands each worker what `start` places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_bench.sim.link import SimLink
from pagoda_bench.sim.requests import SimRequest
from pagoda_router.admission.credits import CreditLedger, OutputLengths, Price, price, service_tokens
from pagoda_router.admission.depth import BatchDepth
from pagoda_router.admission.drain import ClassDrains, retry_after_s
from pagoda_router.admission.queue import WaitingRoom
from pagoda_router.admission.waiting import Waiting
from pagoda_router.backends.base import Settlement, WorkerLink
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.dispatch.choosing import WorkerChooser
from pagoda_router.generation import Generation, ModelName, RequestClass, WorkerId
from pagoda_router.placement.decisions import DecisionRing
from pagoda_router.placement.policy import Refusal
from pagoda_router.placement.prefixes import KnownPrefixes, PrefixChain
from pagoda_router.placement.scores import PolicyName
from pagoda_router.tracing.record import WorkerTimes

MODEL = ModelName("simulated")
MOST_TRIES = 2
"""A second one after a worker was lost before the first token, as second_tries.py has it."""
MAX_TOKENS = 4096
"""What clients allow their answers; not told explicitly, so prediction has to learn."""


@dataclass(frozen=True, slots=True)
class Room:
    """The waiting room's settings, by default the router's (settings.py)."""

    max_tokens: int = 200_000
    timeout_s: float = 60.0
    waves: bool = False


DEFAULT_ROOM = Room()


class Priced:
    """A request as the router knows it: length of the answer not included."""

    __slots__ = ("chain", "cost", "generation", "sim")

    def __init__(self, sim: SimRequest, generation: Generation, cost: Price, chain: PrefixChain) -> None:
        self.sim = sim
        self.generation = generation
        self.cost = cost
        self.chain = chain


class SimRouter:
    def __init__(
        self,
        profile: EngineProfile,
        workers: int,
        policy: PolicyName,
        seed: int,
        send: Callable[[int, SimRequest, float], None],
        *,
        room: Room = DEFAULT_ROOM,
    ) -> None:
        """`send`: to the worker of this number."""
        self._profile = profile
        self._policy = policy
        self._send = send
        self._rng = Random(seed)
        self._chooser = WorkerChooser(self._rng, DecisionRing(0))
        self._room: WaitingRoom[Priced] = WaitingRoom(room.max_tokens, waves=room.waves)
        self._timeout_s = room.timeout_s
        self._lengths = OutputLengths()
        self._drains = ClassDrains()
        self._in_flight: dict[int, Priced] = {}
        self._refused: list[SimRequest] = []
        self._charged: dict[int, int] = {}
        self._is_full = False
        """Every batch, within one look at the queue, as in placing.py: what waits behind need not be tried."""
        self.links = [self._new_link(number, 0) for number in range(workers)]
        self._numbers = {link.worker: link.number for link in self.links}

    def _new_link(self, number: int, epoch: int) -> SimLink:
        profile, worker = self._profile, WorkerId(f"worker-{number}")
        capacity_tokens = profile.kv_tokens // profile.block_size * profile.block_size
        link = SimLink(
            worker,
            number,
            Endpoint(name=str(worker), model=MODEL, variant="default", template="", host=str(worker), port=1),
            CreditLedger(epoch, capacity_tokens),
            KnownPrefixes(profile.block_size, capacity_tokens // profile.block_size),
            profile.max_running,
            BatchDepth(profile.max_running),
        )
        link.grant()
        return link

    @property
    def waiting(self) -> int:
        return len(self._room)

    # ------------------------------------------------------------ requests

    def arrive(self, request: SimRequest, now_s: float) -> None:
        generation = Generation(
            request_id=str(request.number),
            model=MODEL,
            prompt_ids=range(request.prompt_tokens),
            max_tokens=MAX_TOKENS,
            explicit_max_tokens=False,
            tenant=f"tenant-{request.conversation.tenant}",
        )
        size = self._profile.block_size
        cost = price(generation, self._lengths.predict(generation), size)
        chain = PrefixChain(size, request.conversation.hashes(request.prompt_tokens))
        self._wait(Priced(request, generation, cost, chain), now_s)

    def _wait(self, priced: Priced, now_s: float) -> None:
        generation, cost = priced.generation, priced.cost
        displaced = self._room.displaced_by(cost.kv_tokens, generation.tenant, generation.request_class)
        if displaced is None:
            self._refuse(priced, "queue_full", now_s)
            return
        for waiting in displaced:
            self._room.remove(waiting)
            self._refuse(waiting.request, "displaced", now_s)
        waiting = Waiting(
            priced, cost.kv_tokens, priced.sim.number, tenant=generation.tenant, service_tokens=cost.service_tokens, arrived_s=now_s
        )
        self._room.push(waiting)
        self.place_waiting(now_s)
        if priced.sim.placed_s is None and not priced.sim.refused:
            waiting.cached_tokens = max(link.prefixes.cached_tokens(priced.chain) for link in self.links)

    def _refuse(self, priced: Priced, why: str, now_s: float) -> None:
        request, generation = priced.sim, priced.generation
        ahead = self._room.ahead_of(priced.cost.kv_tokens, generation.tenant, generation.request_class)
        request.refused = why
        request.retry_after_s = retry_after_s(self._drains.wait_s(generation.request_class, ahead, now_s), self._rng)
        self._refused.append(request)

    def take_refused(self) -> list[SimRequest]:
        """Since the last time."""
        refused, self._refused = self._refused, []
        return refused

    def place_waiting(self, now_s: float) -> None:
        self._is_full = False
        if len(self._room):
            self._room.start_those_that_fit(lambda waiting: self._start(waiting, now_s), now_s)

    def expire(self, now_s: float) -> None:
        for waiting in [waiting for waiting in self._room if now_s - waiting.request.sim.arrived_s >= self._timeout_s]:
            self._room.remove(waiting)
            self._refuse(waiting.request, "queue_timeout", now_s)
        self.place_waiting(now_s)

    def _start(self, waiting: Waiting[Priced], now_s: float) -> bool:
        if self._is_full:
            return False
        priced, request = waiting.request, waiting.request.sim
        for link in self.links:
            link.now_s = now_s
        # A SimLink has what choosing asks of a link; streams and sessions it has not.
        links = cast("Sequence[WorkerLink]", self.links)
        avoid = {self.links[number].worker for number in request.lost_on}
        choice = self._chooser.choose(links, priced.cost, priced.chain, now_s, avoid=avoid, policy=self._policy)
        if isinstance(choice, Refusal):
            if choice.why != "too_large":
                self._is_full = choice.why == "batches_full"
                return False
            self._refuse(priced, "too_large", now_s)
            waiting.service_tokens = 0
            return True
        found = choice.placement
        link = self.links[self._numbers[found.worker]]
        cost = priced.cost.with_cached(found.cached_tokens, self._profile.block_size)
        waiting.service_tokens = self._charged[request.number] = cost.service_tokens
        self._in_flight[request.number] = priced
        link.submitted(request.number, cost, found.reserved_tokens, priced.chain, now_s)
        self._chooser.placed(choice, priced.generation, WorkerTimes(), now_s)
        request.placed_s, request.worker, request.predicted_ttft_ms = now_s, link.number, found.predicted_ms
        request.tries += 1
        self._send(link.number, request, now_s)
        return True

    def over(self, request: SimRequest, now_s: float, *, is_lost: bool = False) -> None:
        """It left its worker."""
        assert request.worker is not None
        link = self.links[request.worker]
        priced = self._in_flight.pop(request.number)
        reserved_tokens = link.over(request.number, None if is_lost else request.output_tokens)
        generation = priced.generation
        done = 0 if is_lost else service_tokens(request.prompt_tokens, request.cached_tokens, request.output_tokens)
        self._room.settle(generation.tenant, generation.request_class, self._charged.pop(request.number) - done)
        self._chooser.settled(
            Settlement(
                model=MODEL,
                reserved_tokens=reserved_tokens,
                used_tokens=0,
                predicted_output_tokens=priced.cost.output_tokens,
                output_tokens=(),
                ran=not is_lost,
                failure="worker_lost" if is_lost else None,
                worker=link.worker,
            ),
            now_s,
        )
        if is_lost:
            self._second_try(priced, now_s)
            return
        self._drains.settle(RequestClass.LATENCY, now_s, reserved_tokens)
        self._lengths.observe(generation.tenant, generation.request_class, request.output_tokens)
        self.place_waiting(now_s)

    def _second_try(self, priced: Priced, now_s: float) -> None:
        request = priced.sim
        if request.first_s is not None or request.tries >= MOST_TRIES:
            self._refuse(priced, "worker_lost", now_s)
            return
        assert request.worker is not None
        request.lost_on.add(request.worker)
        request.worker = request.placed_s = None
        self._wait(priced, now_s)

    # ------------------------------------------------------------ workers

    def worker_died(self, number: int, lost: Sequence[SimRequest], now_s: float) -> None:
        link = self.links[number]
        link.is_up = False
        for request in lost:
            self.over(request, now_s, is_lost=True)

    def worker_back(self, number: int, epoch: int, now_s: float) -> None:
        """A new session: nothing of the old one is known any more."""
        self.links[number] = self._new_link(number, epoch)
        self.place_waiting(now_s)
