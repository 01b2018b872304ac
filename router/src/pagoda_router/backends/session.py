"""One open Session with a worker, from its Welcome to its end: what the worker says, and what is known of it for so long.

Owns the running requests, the credits and the knowledge of prefixes and rates, which all end with the session; in the next one the worker
counts anew. Knows no socket and no reconnecting: the link (pagoda.py) makes one at each Welcome and hands it every message.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from pagoda_router.admission.credits import CreditLedger
from pagoda_router.backends.base import LinkListener
from pagoda_router.backends.knowledge import WorkerKnowledge
from pagoda_router.backends.session_call import Outbox
from pagoda_router.backends.streams import RunningRequests
from pagoda_router.backends.translate import adapters_of, refusal
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import WorkerId
from pagoda_router.wire import worker_pb2 as wire

log = logging.getLogger(__name__)

ACKNOWLEDGE_EVERY_FRAMES = 64
"""The worker cuts a router off at 1024 frames unread."""


class OpenSession:
    def __init__(
        self,
        worker: WorkerId,
        endpoint: Endpoint,
        outbox: Outbox,
        listener: LinkListener,
        welcome: Any,
        *,
        block_size: Callable[[], int],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`block_size`: of the worker as far as it is known. `changed`: something that placement looks at is otherwise now.
        `clock`: seconds, monotonic."""
        self.knowledge = WorkerKnowledge(clock)
        self.requests = RunningRequests(
            worker,
            endpoint.model,
            CreditLedger(welcome.epoch, welcome.state.kv_capacity_tokens),
            listener,
            outbox.put,
            block_size=block_size,
            on_prefilled=self.knowledge.prefilled,
        )
        self.state: Any = welcome.state
        """The wire's WorkerState, the last one."""
        self.ready = asyncio.Event()
        self.adapters = adapters_of(welcome)
        self.life: str = welcome.worker_id
        self.is_draining = False
        """The worker says goodbye."""
        self.messages_seen = 0
        self._worker = worker
        self._endpoint = endpoint
        self._outbox = outbox
        self._listener = listener
        self._changed = changed
        self._frames_seen = 0
        outbox.takes_batches, outbox.packs_ids = welcome.takes_batches, welcome.takes_packed_ids
        log.info("session %s: open, epoch %d", worker, welcome.epoch)

    def begin(self, welcome: Any) -> None:
        """Once the link has it, since the listener asks the link."""
        self._learn(welcome.state, welcome.grants)
        self.ping()  # the first request's times need to know how far apart the clocks are

    def ping(self) -> None:
        self._outbox.put(wire.ToWorker(ping=wire.Ping(sent_mono_us=time.monotonic_ns() // 1000)))

    def handle(self, message: Any) -> None:
        """The wire's FromWorker."""
        self.messages_seen += 1
        match message.WhichOneof("message"):
            case "frame":
                self._handle_frame(message.frame)
            case "refused":
                self._handle_refused(message.refused)
            case "pong":
                pong = message.pong
                replied_us = pong.replied_mono_us or pong.worker_mono_us  # an older worker tells one stamp
                self.requests.clock.ponged(pong.sent_mono_us, pong.worker_mono_us, replied_us, time.monotonic_ns() // 1000)
            case "goodbye":
                self.is_draining = True
                log.info("session %s: the worker drains: %s", self._worker, message.goodbye.reason)
        self._changed()

    def _handle_frame(self, frame: Any) -> None:
        self.knowledge.heard(frame, self.state)
        for event in frame.cache_events:
            if event.model == self._endpoint.model:
                self.knowledge.cache_changed(event)
        if frame.HasField("adapters"):
            self.adapters = adapters_of(frame)
            self._listener.capacity_changed(self._endpoint.model)
        self.requests.deliver(frame)
        if frame.grants or frame.HasField("state"):
            self._learn(frame.state if frame.HasField("state") else None, frame.grants)
        self._frames_seen += 1
        if self._frames_seen % ACKNOWLEDGE_EVERY_FRAMES == 0:
            self._outbox.put(wire.ToWorker(flow=wire.FlowCredit(frames_read_total=self._frames_seen)))

    def _handle_refused(self, refused: Any) -> None:
        if refused.code == wire.Refused.NOT_READY:
            self.state.ready, self.state.not_ready_reason = False, refused.message  # until the next state says otherwise
        elif refused.code == wire.Refused.DRAINING:
            self.is_draining = True
        self.requests.refuse(refused.request_id, refusal(refused))

    def _learn(self, state: Any, grants: Any) -> None:
        ledger = self.requests.ledger
        if state is not None:
            self.state = state
            ledger.capacity_tokens = state.kv_capacity_tokens
            self.knowledge.rates.told(
                state.prefill_tokens_per_s,
                state.decode_step_ms,
                prefill_step_ms=state.prefill_step_ms,
                prefill_token_ms=state.prefill_token_ms,
            )
            self.requests.depth.told(state.num_running + state.num_waiting, self.requests.sequences, state.routers)
            if state.ready:
                self.ready.set()
            else:
                self.ready.clear()
        for grant in grants:
            if grant.model == self._endpoint.model and not grant.adapter:
                ledger.grant(grant.epoch, grant.seq, grant.granted_kv_tokens_total)
        self._changed()
        self._listener.capacity_changed(self._endpoint.model)
