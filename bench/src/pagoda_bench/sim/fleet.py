"""The discrete-event loop: users, the router's side, workers and what they tell each other, in the order of simulated time.

    arrival ─▶ router ─▶ worker ─▶ steps end ─▶ first token, last token ─▶ router settles, user thinks ─▶ next turn's arrival
                  ▲─── state when a step ends, cache events a moment late ───┘

Owns the clock and the order of events; equal times are handled in the order in which they were planned, so a seed gives one run. Called by
run.py.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pagoda_bench.sim.demand import Conversation
from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_bench.sim.link import SimLink, state_of
from pagoda_bench.sim.oracle import Oracle
from pagoda_bench.sim.requests import SimRequest
from pagoda_bench.sim.router import DEFAULT_ROOM, Room, SimRouter
from pagoda_bench.sim.sequence import Sequence as OnWorker
from pagoda_bench.sim.worker import SimWorker
from pagoda_router.placement.scores import PolicyName

CACHE_EVENT_DELAY_S = 0.05
EXPIRY_CHECK_S = 0.1
MOST_STEP_SAMPLES = 8
"""Of steps taken at once, told to the router's learned rates: more of one batch size teach nothing."""


@dataclass(frozen=True, slots=True)
class Fault:
    worker: int
    at_s: float
    until_s: float
    slowness: float | None = None
    """Times as long as before. None: it is dead."""


class Simulation:
    def __init__(
        self,
        conversations: Sequence[Conversation],
        profile: EngineProfile,
        workers: int,
        policy: PolicyName,
        *,
        seed: int = 0,
        faults: Sequence[Fault] = (),
        until_s: float = math.inf,
        room: Room = DEFAULT_ROOM,
    ) -> None:
        """`seed`: of the router's draws; the users' is in their conversations. `until_s`: no turn begins later."""
        self.requests: list[SimRequest] = []
        self.now_s = 0.0
        self._until_s = until_s
        self._profile = profile
        self._workers = [SimWorker(number, profile, self) for number in range(workers)]
        self._planned: list[float | None] = [None] * workers
        self._begun: list[list[SimRequest]] = [[] for _ in range(workers)]
        """In the step under way: its frame tells of them when it ends."""
        self._epochs = [0] * workers
        self._router = SimRouter(profile, workers, policy, seed, self._send, room=room)
        for number in range(workers):
            self._connect(number)
        self._oracle = Oracle(profile.block_size)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ticks = 0
        self._open = 0
        """Conversations that go on."""
        self._is_watching = False
        for conversation in conversations:
            self._open += 1
            self._at(conversation.at_s, lambda conversation=conversation: self._arrive(conversation, 0))  # type: ignore[misc]
        for fault in faults:
            self._at(fault.at_s, lambda fault=fault: self._begin(fault))  # type: ignore[misc]
            self._at(fault.until_s, lambda fault=fault: self._end(fault))  # type: ignore[misc]

    def run(self, stop_s: float = math.inf) -> list[SimRequest]:
        """Until every conversation has ended, or until then. All requests, in the order of their arrival."""
        while self._events and self._open and self.now_s < stop_s:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
        return self.requests

    @property
    def preemptions(self) -> int:
        return sum(request.preemptions for request in self.requests)

    @property
    def waiting(self) -> int:
        """Requests in the router's queue."""
        return self._router.waiting

    @property
    def links(self) -> Sequence[SimLink]:
        return self._router.links

    def _at(self, at_s: float, happen: Callable[[], None]) -> None:
        self._ticks += 1
        heapq.heappush(self._events, (at_s, self._ticks, happen))

    # ------------------------------------------------------------ users

    def _arrive(self, conversation: Conversation, turn_index: int) -> None:
        request = SimRequest(len(self.requests), conversation, turn_index, self.now_s)
        self.requests.append(request)
        self._oracle.arrive(request)
        self._router.arrive(request, self.now_s)
        if self._router.waiting and not self._is_watching:
            self._is_watching = True
            self._at(self.now_s + EXPIRY_CHECK_S, self._expire)
        self._count_refused()

    def _next_turn(self, request: SimRequest) -> None:
        """A conversation whose answer did not come ends."""
        conversation, following, at_s = request.conversation, request.turn_index + 1, self.now_s + request.turn.think_s
        if request.refused or following == len(conversation.turns) or at_s > self._until_s:
            self._open -= 1
        else:
            self._at(at_s, lambda: self._arrive(conversation, following))

    def _count_refused(self) -> None:
        for request in self._router.take_refused():
            self._next_turn(request)

    def _expire(self) -> None:
        self._is_watching = self._router.waiting > 0
        self._router.expire(self.now_s)
        self._count_refused()
        if self._is_watching:
            self._at(self.now_s + EXPIRY_CHECK_S, self._expire)

    # ------------------------------------------------------------ workers

    def _connect(self, number: int) -> None:
        """Its first word has its state."""
        self._router.links[number].latest_word_s = self._workers[number].latest_step_s
        self._router.links[number].heard(state_of(self._workers[number]))

    def _send(self, number: int, request: SimRequest, now_s: float) -> None:
        worker = self._workers[number]
        worker.submit(request, now_s)
        self._plan(worker)

    def _plan(self, worker: SimWorker) -> None:
        ends_s = worker.ends_s
        if ends_s is not None and ends_s != self._planned[worker.number]:
            self._planned[worker.number] = ends_s
            self._at(ends_s, lambda: self._steps_ended(worker, ends_s))

    def _steps_ended(self, worker: SimWorker, ends_s: float) -> None:
        if self._workers[worker.number] is not worker or worker.ends_s != ends_s:
            return  # it died, or its steps were cut short
        self._planned[worker.number] = None
        link, begun = self._router.links[worker.number], self._begun[worker.number]
        self._begun[worker.number] = []
        worker.steps_ended(self.now_s)
        for request in begun:
            link.begun(request.number)
        link.heard(state_of(worker))
        self._plan(worker)

    def begun(self, worker: SimWorker, sequence: OnWorker, now_s: float) -> None:
        self._begun[worker.number].append(sequence.request)

    def first_token(self, worker: SimWorker, sequence: OnWorker, now_s: float) -> None:
        sequence.request.first_s = now_s
        assert sequence.began_s is not None
        link = self._router.links[worker.number]
        link.rates.prefilled(sequence.request.prompt_tokens - sequence.request.cached_tokens, now_s - sequence.began_s)

    def decoded(self, worker: SimWorker, sequences: int, steps: int, step_s: float) -> None:
        link = self._router.links[worker.number]
        for _ in range(min(steps, MOST_STEP_SAMPLES)):
            link.rates.decoded(sequences, step_s * 1000)

    def over(self, worker: SimWorker, sequence: OnWorker, now_s: float) -> None:
        request = sequence.request
        request.ended_s = now_s
        self._oracle.answered(request)
        # Afterwards: the worker is in the middle of a step's settling, and a request that now fits must not enter it there.
        self._at(now_s, lambda: self._settle(request))

    def _settle(self, request: SimRequest) -> None:
        if request.ended_s is not None:
            self._router.over(request, self.now_s)
            self._next_turn(request)
            self._count_refused()

    def cache_changed(self, worker: SimWorker, stored: list[bytes], evicted: list[bytes], now_s: float) -> None:
        link = self._router.links[worker.number]

        def told() -> None:
            link.prefixes.stored(stored)
            link.prefixes.removed(evicted)

        self._at(now_s + CACHE_EVENT_DELAY_S, told)

    # ------------------------------------------------------------ faults

    def _begin(self, fault: Fault) -> None:
        worker = self._workers[fault.worker]
        if fault.slowness is not None:
            worker.slowness = fault.slowness
            return
        lost = [request for request in worker.unfinished() if request.ended_s is None]
        self._workers[fault.worker] = SimWorker(fault.worker, self._profile, self)
        self._planned[fault.worker], self._begun[fault.worker] = None, []
        self._router.worker_died(fault.worker, lost, self.now_s)
        self._count_refused()

    def _end(self, fault: Fault) -> None:
        if fault.slowness is not None:
            self._workers[fault.worker].slowness = 1.0
            return
        self._epochs[fault.worker] += 1
        self._router.worker_back(fault.worker, self._epochs[fault.worker], self.now_s)
        self._connect(fault.worker)
