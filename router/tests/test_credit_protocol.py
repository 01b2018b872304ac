"""Both ends of the KV credits, message by message: several routers' ledgers, one worker's, and whatever can go wrong between them.

The worker's ledger is the worker's own code. Messages travel in order within a session and as late as they like, as on the wire.
"""

from collections import deque
from dataclasses import dataclass, field
from importlib.util import find_spec

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagoda_router.admission.credits import CreditLedger, price
from pagoda_router.generation import Generation, ModelName

if find_spec("pagoda_worker") is None:
    pytest.skip("the worker is not installed beside the router", allow_module_level=True)

from pagoda_worker.front.credits import OVERRUN_STEPS
from pagoda_worker.front.credits import CreditLedger as WorkerLedger

BLOCK = 16
ROUTERS = 3


@dataclass
class Session:
    epoch: int
    ledger: CreditLedger
    to_worker: deque[tuple[str, int, int]] = field(default_factory=deque)
    """(submit or cancel, request, tokens)"""
    to_router: deque[tuple[str, int, int]] = field(default_factory=deque)
    """(grant, sequence number, total) or (end, request, 0)"""
    running: dict[int, int] = field(default_factory=dict)
    """On the worker: request → tokens."""
    spent: dict[int, int] = field(default_factory=dict)
    """By the router's count, until it has heard of the end."""


class Credits(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.capacity = 40 * BLOCK
        self.worker: WorkerLedger[int] = WorkerLedger(self.capacity)
        self.sessions: dict[int, Session] = {}
        self.epoch = self.seq = self.request = 0

    # ------------------------------------------------------------ the wire

    def tell(self) -> None:
        for epoch, total in self.worker.changes():
            self.seq += 1
            session = next(session for session in self.sessions.values() if session.epoch == epoch)
            session.to_router.append(("grant", self.seq, total))

    def worker_reads(self, session: Session) -> None:
        kind, request, tokens = session.to_worker.popleft()
        if kind == "submit":
            if self.worker.fits(session.epoch, tokens):
                self.worker.spend(session.epoch, tokens)
                session.running[request] = tokens
            else:
                self.worker.refund(session.epoch, tokens)
                session.to_router.append(("end", request, 0))
        elif request in session.running:
            self.ends(session, request)
        self.tell()

    def router_reads(self, session: Session) -> None:
        kind, number, total = session.to_router.popleft()
        if kind == "grant":
            session.ledger.grant(session.epoch, number, total)
        else:
            assert session.ledger.settle(number) == session.spent.pop(number)
            assert session.ledger.settle(number) == 0

    def ends(self, session: Session, request: int) -> None:
        self.worker.give_back(session.epoch, session.running.pop(request))
        session.to_router.append(("end", request, 0))
        self.tell()

    def close(self, router: int) -> None:
        self.worker.close(self.sessions.pop(router).epoch)
        self.tell()

    # ------------------------------------------------------------ what happens

    @rule(router=st.integers(0, ROUTERS - 1))
    def a_router_starts_or_restarts(self, router: int) -> None:
        """The worker forgets the old epoch's requests, and so does the router: neither knows of the other's messages under way."""
        if router in self.sessions:
            self.close(router)
        self.epoch += 1
        self.sessions[router] = Session(self.epoch, CreditLedger(self.epoch, self.capacity))
        self.worker.open(self.epoch)
        self.tell()

    @rule(router=st.integers(0, ROUTERS - 1), prompt=st.integers(1, 700), output=st.integers(1, 200), n=st.integers(1, 4))
    def a_request_arrives(self, router: int, prompt: int, output: int, n: int) -> None:
        session = self.sessions.get(router)
        if session is None:
            return
        wanted = Generation(
            request_id="r", model=ModelName("m"), prompt_ids=range(prompt), max_tokens=output, explicit_max_tokens=True, n=n
        )
        reserved = session.ledger.reservation_for(price(wanted, output, BLOCK))
        if reserved is None:
            return
        self.request += 1
        session.ledger.spend(self.request, reserved)
        session.spent[self.request] = reserved
        session.to_worker.append(("submit", self.request, reserved))

    @rule(data=st.data())
    def messages_arrive(self, data: st.DataObject) -> None:
        for session in self.sessions.values():
            for _ in range(data.draw(st.integers(0, len(session.to_worker)))):
                self.worker_reads(session)
            for _ in range(data.draw(st.integers(0, len(session.to_router)))):
                self.router_reads(session)

    @rule()
    def all_messages_arrive(self) -> None:
        while any(session.to_worker or session.to_router for session in self.sessions.values()):
            for session in self.sessions.values():
                while session.to_worker:
                    self.worker_reads(session)
                while session.to_router:
                    self.router_reads(session)

    @rule(data=st.data(), is_cancelled=st.booleans())
    def a_request_ends_or_is_cancelled(self, data: st.DataObject, is_cancelled: bool) -> None:
        sessions = [session for session in self.sessions.values() if session.running]
        if not sessions:
            return
        session = data.draw(st.sampled_from(sessions))
        request = data.draw(st.sampled_from(sorted(session.running)))
        if is_cancelled:
            session.to_worker.append(("cancel", request, 0))  # may cross its end on the way
        else:
            self.ends(session, request)

    @rule(beyond=st.integers(0, 50 * BLOCK))
    def answers_outgrow_what_was_reserved(self, beyond: int) -> None:
        self.all_messages_arrive()
        free = max(0, self.capacity - self.worker.in_use_tokens - beyond)
        self.worker.set_free(free)
        self.tell()
        self.all_messages_arrive()
        unspent = sum(session.ledger.available_tokens for session in self.sessions.values())
        assert unspent <= free + self.capacity // OVERRUN_STEPS

    @rule(router=st.integers(0, ROUTERS - 1))
    def a_router_dies(self, router: int) -> None:
        if router in self.sessions:
            self.close(router)

    @precondition(lambda self: self.sessions)
    @rule()
    def the_worker_dies_and_comes_back(self) -> None:
        """Its sessions are gone with everything in them; each router opens a new one."""
        self.worker = WorkerLedger(self.capacity)
        for router in list(self.sessions):
            self.epoch += 1
            self.sessions[router] = Session(self.epoch, CreditLedger(self.epoch, self.capacity))
            self.worker.open(self.epoch)
        self.tell()

    # ------------------------------------------------------------ what holds

    @invariant()
    def the_worker_never_runs_more_than_it_holds(self) -> None:
        assert sum(sum(session.running.values()) for session in self.sessions.values()) == self.worker.in_use_tokens <= self.capacity

    @invariant()
    def a_router_holds_what_it_has_not_heard_the_end_of(self) -> None:
        for session in self.sessions.values():
            assert session.ledger.outstanding_tokens == sum(session.spent.values()) <= self.capacity
            assert session.running.keys() <= session.spent.keys()

    @invariant()
    def when_all_is_said_the_promises_fit_the_truth(self) -> None:
        if any(session.to_worker or session.to_router for session in self.sessions.values()):
            return
        available = [session.ledger.available_tokens for session in self.sessions.values()]
        assert all(tokens >= 0 for tokens in available)
        assert sum(available) + self.worker.in_use_tokens <= self.capacity

    def teardown(self) -> None:
        """Everything ends and is heard of: nothing is held, and the whole capacity is there for whoever is left."""
        while any(session.to_worker or session.to_router or session.running for session in self.sessions.values()):
            for session in self.sessions.values():
                while session.to_worker:
                    self.worker_reads(session)
                for request in list(session.running):
                    self.ends(session, request)
                while session.to_router:
                    self.router_reads(session)
        self.worker.set_free(self.capacity)
        self.tell()
        for session in self.sessions.values():
            while session.to_router:
                self.router_reads(session)
        assert self.worker.in_use_tokens == 0
        available = [session.ledger.available_tokens for session in self.sessions.values()]
        assert all(session.ledger.outstanding_tokens == 0 for session in self.sessions.values())
        assert not available or self.capacity - len(available) < sum(available) <= self.capacity


Credits.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
test_credits_agree_whatever_happens = Credits.TestCase
