"""Connects routers' calls with the engine: owns sessions and credits, turns each engine step into one frame per router.

Told by the supervisor what the engine says, by the service what routers say; all in one event loop, so nothing here is ever half done.
Knows neither sockets nor processes.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import grpc

from pagoda_worker.channel import Rejected
from pagoda_worker.errors import WorkerError
from pagoda_worker.facts import AdaptersState, ModelFacts
from pagoda_worker.front.cache_mirror import CacheMirror
from pagoda_worker.front.calls import Call
from pagoda_worker.front.credits import CreditLedger
from pagoda_worker.front.metrics import WorkerMetrics
from pagoda_worker.front.open_calls import OpenCalls
from pagoda_worker.front.outputs import adapters_message
from pagoda_worker.front.refusals import Standing, judge, refused_by_error
from pagoda_worker.front.session import RouterSession, worker_state
from pagoda_worker.request import EngineState, Request, StepOutput
from pagoda_worker.wire import worker_pb2 as pb

MAX_RESERVED_TOKENS = 1 << 40
"""Beyond this a reservation is not a mistake in size but nonsense, and its refund would not fit the wire."""
MAX_DRAFTS_TOLD = 256
"""Tokens of one message."""

log = logging.getLogger(__name__)


class EngineControl(Protocol):
    """What the switchboard asks of the supervisor."""

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str, sequence: int | None = None) -> None: ...
    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None: ...


class Switchboard:
    """An EngineListener."""

    def __init__(
        self, model: str, worker_id: str, engine: EngineControl, metrics: WorkerMetrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model = model
        self.worker_id = worker_id
        self.facts: ModelFacts | None = None
        """Of the last engine that loaded; kept while it is restarted."""
        self.adapters: AdaptersState | None = None
        """None: none can be loaded."""
        self.sources: dict[str, str] = {}
        """Of adapters, as they were asked for."""
        self.not_ready_reason = "the engine is loading"
        """Empty when new requests are welcome."""
        self.empty = asyncio.Event()
        """No session is open."""
        self.empty.set()
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._state: EngineState | None = None
        self._draining = False
        self._epochs = itertools.count(1)
        self._sessions: dict[int, RouterSession] = {}
        self._ledger: CreditLedger[int] = CreditLedger()
        self._calls = OpenCalls(self._ledger, metrics)
        self._cache = CacheMirror(model)

    # ---- routers

    def open(self, router_id: str, *, wants_cache_events: bool = False) -> RouterSession:
        """A second session of one router replaces the first."""
        for other in list(self._sessions.values()):
            if other.router_id == router_id:
                other.end(grpc.StatusCode.ABORTED, f"a newer session of router {router_id} replaced this one")
                self.close(other)
        session = RouterSession(next(self._epochs), router_id, wants_cache_events=wants_cache_events)
        self._sessions[session.epoch] = session
        self.empty.clear()
        self._metrics.sessions = len(self._sessions)
        self._ledger.open(session.epoch)
        grants = dict(self._ledger.changes())
        own = [session.grant(self.model, grants.pop(session.epoch))] if session.epoch in grants else []
        session.welcome(self.worker_id, self._state_message(), own, self.now_us(), self._adapters_message())
        if wants_cache_events:
            session.send_cache(self._cache.whole(), self.now_us())
        self._publish(grants)
        log.info("router %s connected, epoch %d", router_id, session.epoch)
        return session

    def close(self, session: RouterSession) -> None:
        """The stream is gone: so are its requests. Closing twice is fine: a replaced session's stream ends later."""
        if self._sessions.pop(session.epoch, None) is None:
            return
        self._metrics.sessions = len(self._sessions)
        for call in session.calls.values():
            self._engine.cancel(call.engine_id)
            self._calls.abandon(call)
        if session.calls:
            log.info("router %s left %d requests, which are cancelled", session.router_id, len(session.calls))
        session.calls.clear()
        self._ledger.close(session.epoch)
        if not self._sessions:
            self.empty.set()
        self._publish()

    def submit(self, session: RouterSession, submit: pb.Submit) -> None:
        received_us = self.now_us()
        if submit.request_id in session.calls or submit.reserved_kv_tokens > MAX_RESERVED_TOKENS:
            session.end(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Submit {submit.request_id} is already running in this epoch, or reserves more than {MAX_RESERVED_TOKENS} tokens",
            )
            return
        request = judge(submit, f"{session.epoch}:{submit.request_id}", self._standing(session, submit), self.facts)
        if isinstance(request, pb.Refused):
            self._ledger.refund(session.epoch, submit.reserved_kv_tokens)
            self._refuse(session, request)
            return
        call = Call(session, submit, request, received_us)
        self._calls.open(call)
        call.handed_us = self.now_us()  # before the write: the engine may have it before the write returns
        self._engine.submit(request)

    def cancel(self, session: RouterSession, cancel: pb.Cancel) -> None:
        """Unknown ids are calls that have just finished. The engine answers with the finish."""
        call = session.calls.get(cancel.request_id)
        if call is None:
            return
        sequence = cancel.sequence if cancel.HasField("sequence") else None
        if cancel.reason == pb.CANCEL_STOP_STRING:
            call.stopped_by_text |= call.open_sequences if sequence is None else {sequence}
        if sequence is None or sequence in call.open_sequences:
            self._engine.cancel(call.engine_id, sequence)

    def draft(self, session: RouterSession, draft: pb.DraftTokens) -> None:
        """A guess is only a guess: one that nobody can use is dropped, not answered."""
        call, facts = session.calls.get(draft.request_id), self.facts
        if call is None or facts is None or facts.speculative != "remote" or draft.sequence not in call.open_sequences:
            return
        token_ids = list(draft.token_ids)
        if token_ids and len(token_ids) <= MAX_DRAFTS_TOLD and max(token_ids) < facts.vocab_size:
            self._engine.draft(call.engine_id, draft.sequence, draft.position, token_ids)

    # ---- the engine

    def engine_ready(self, facts: ModelFacts, state: EngineState) -> None:
        self.facts, self._state = facts, state
        self.not_ready_reason = ""
        self._cache.block_size = facts.block_size
        self._metrics.engine_ready(facts, state)
        self._ledger.set_capacity(facts.kv_capacity_tokens)
        self._publish()

    def adapters_told(self, state: AdaptersState) -> None:
        """Another one is there, or gone, or in a slot of the device."""
        self.adapters = state
        message = self._adapters_message()
        self._metrics.adapters_told(state)
        for session in self._sessions.values():
            session.draft.adapters = message
        self._publish()

    def engine_stepped(self, output: StepOutput) -> None:
        """One pass over the step's rows of all routers."""
        self._state = output.state
        self._ledger.set_free(output.state.kv_free_tokens)  # before this step's finishes give back what they held
        at_us = output.state.at_mono_us
        gaps_us: dict[int, int] = {}
        calls = self._calls.by_id
        for update in output.updates:
            call = calls.get(update.request_id)
            if call is None or update.sequence not in call.open_sequences:
                continue  # its router has gone; the engine will see the cancel
            self._calls.hear(call, update, at_us, gaps_us)
        if output.cache is not None:
            self._tell_cache(self._cache.apply(output.cache))
        self._metrics.stepped(output, gaps_us)
        self._publish(at_us=at_us)

    def engine_idle(self, state: EngineState) -> None:
        self._state = state
        self._ledger.set_free(state.kv_free_tokens)
        self._metrics.idle(state)
        self._publish()

    def engine_rejected(self, rejected: Rejected) -> None:
        call = self._calls.by_id.get(rejected.request_id)
        if call is not None:
            self._calls.forget(call)
            self._refuse(call.session, refused_by_error(call.request_id, rejected.error, rejected.message, rejected.param))

    def engine_stalled(self, reason: str) -> None:
        self.not_ready_reason = reason
        self._publish()

    def engine_moving(self) -> None:
        self.not_ready_reason = ""
        self._publish()

    def engine_down(self, reason: str) -> None:
        self._state = None
        self.not_ready_reason = f"{reason}; it is being started again"
        self._tell_cache(self._cache.clear())
        self._metrics.engine_down()
        self._ledger.set_capacity(0)
        self._calls.end_all(pb.FINISH_ENGINE_ERROR, f"{reason}; ask again", engine_died=True)
        self._publish()

    # ---- drain

    def drain(self, reason: str, drain_s: float) -> None:
        """No new submits from here on; running ones go on."""
        self._draining = True
        goodbye = pb.FromWorker(goodbye=pb.Goodbye(reason=reason, drain_us=int(drain_s * 1e6)))
        for session in self._sessions.values():
            session.send(goodbye)
        self._publish()

    def shut_down(self, detail: str) -> None:
        """What still runs ends with SHUTDOWN, and each stream after what waits to be written."""
        for engine_id in self._calls.by_id:
            self._engine.cancel(engine_id)
        self._calls.end_all(pb.FINISH_SHUTDOWN, detail)
        self._publish()
        for session in self._sessions.values():
            session.end_after_outbox()

    @property
    def idle(self) -> asyncio.Event:
        """No call is open."""
        return self._calls.idle

    def is_open(self, engine_id: str) -> bool:
        return engine_id in self._calls.by_id

    @property
    def open_calls(self) -> int:
        return len(self._calls.by_id)

    @property
    def refusal_reason(self) -> str:
        """Why new requests are not welcome; empty when they are."""
        return "the worker drains and takes no new requests" if self._draining else self.not_ready_reason

    # ---- inside

    def _standing(self, session: RouterSession, submit: pb.Submit) -> Standing:
        fits = self._ledger.fits(session.epoch, submit.reserved_kv_tokens)
        names = {each.name for each in self.adapters.loaded} if self.adapters is not None and submit.adapter else ()
        return Standing(self.model, self._draining, self.refusal_reason, len(session.calls), fits, names)

    @contextlib.contextmanager
    def named_source(self, adapter: str, source: str) -> Iterator[None]:
        """While it is loaded from there; if that fails, what was told before stands."""
        before = self.sources.get(adapter, "")
        self.sources[adapter] = source
        try:
            yield
        except WorkerError:
            self.sources[adapter] = before
            raise

    def _adapters_message(self) -> pb.AdaptersState | None:
        return None if self.adapters is None else adapters_message(self.adapters, self.sources)

    def _refuse(self, session: RouterSession, refused: pb.Refused) -> None:
        self._metrics.refused(pb.Refused.Code.Name(refused.code).lower())
        session.send(pb.FromWorker(refused=refused))
        self._publish()

    def _tell_cache(self, events: Sequence[pb.CacheEvent]) -> None:
        for session in self._sessions.values():
            session.cache_changed(events)

    def _publish(self, totals: dict[int, int] | None = None, at_us: int | None = None) -> None:
        """One frame for each router that has rows, a changed grant or news of the worker."""
        totals = dict(self._ledger.changes()) if totals is None else totals
        state, step = self._state_message(), self._state.step if self._state else 0
        at_us = self.now_us() if at_us is None else at_us
        for session in self._sessions.values():
            total = totals.get(session.epoch)
            session.send_frame(step, at_us, state, None if total is None else session.grant(self.model, total))

    def _state_message(self) -> pb.WorkerState:
        return worker_state(self._state, draining=self._draining, not_ready_reason=self.refusal_reason, routers=len(self._sessions))

    def now_us(self) -> int:
        return int(self._clock() * 1e6)
