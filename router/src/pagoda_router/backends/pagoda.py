"""The link to one of our own workers: a connection, one Session on it, reconnected for as long as discovery names the worker.

Owns the session's life: Hello, state, credits, pings, acknowledgements, Describe and artifacts. What runs in it belongs to
streams.RunningRequests. Knows no policy; fleet.py makes and retires links, the dispatcher submits on them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

import grpc.aio
from google.protobuf.message import DecodeError

from pagoda_router.admission.credits import CreditLedger, Price
from pagoda_router.backends.base import LinkListener
from pagoda_router.backends.describe import describe
from pagoda_router.backends.http2 import UNIMPLEMENTED, Http2Error
from pagoda_router.backends.knowledge import WorkerKnowledge
from pagoda_router.backends.session_call import CallEnded, Outbox, Unreachable, open_call
from pagoda_router.backends.session_view import SessionView, for_request
from pagoda_router.backends.streams import RequestStream, RunningRequests
from pagoda_router.backends.translate import refusal, submit_message
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import Generation, WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.prefixes import NO_CHAIN, PrefixChain
from pagoda_router.text.artifacts import ArtifactCache, BadArtifact
from pagoda_router.wire import worker_pb2 as wire
from pagoda_router.wire.worker_pb2_grpc import WorkerStub

log = logging.getLogger(__name__)

PROTOCOL = 1
SESSION = "/pagoda.worker.v1.Worker/Session"
USUAL_BLOCK_SIZE = 16
"""What workers use unless told otherwise; in force until one has said."""
ACKNOWLEDGE_EVERY_FRAMES = 64
"""The worker cuts a router off at 1024 frames unread."""
MAX_MESSAGE_BYTES = 64 * 2**20
"""A prompt of a million ids is about 4 MB."""
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel connects anew, without another one's backoff
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTiming:
    """Seconds. Tests shorten them."""

    welcome_s: float = 5.0
    """From connecting to Welcome."""
    ping_every_s: float = 2.0
    silent_pings: int = 3
    """Pings in a row during which nothing at all arrived: the session counts as broken."""
    describe_s: float = 30.0
    """Of Describe, and of fetching one artifact."""
    first_backoff_s: float = 0.2
    last_backoff_s: float = 5.0
    starting_backoff_s: float = 0.5
    """The longest after a refused connection: a worker that starts, or fetches its model, is taken up at once when it listens."""


class SessionBroken(Exception):
    pass


class PagodaLink:
    """Implements WorkerLink."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        router_id: str,
        token: str,
        artifacts: ArtifactCache,
        listener: LinkListener,
        on_described: Callable[[Any], Awaitable[None]],
        timing: LinkTiming | None = None,
        zone: str = "",
    ) -> None:
        """`on_described` gets the ModelDescription once its artifacts are cached, before the worker becomes routable. `zone`:
        this router's; empty: not known."""
        self.endpoint = endpoint
        self.worker = WorkerId(f"{endpoint.name}@{endpoint.target}")
        self.max_model_len: int | None = None
        self._router_id = router_id
        self._token = token
        self._artifacts = artifacts
        self._listener = listener
        self._on_described = on_described
        self._timing = timing or LinkTiming()
        self._view = SessionView(self.worker, endpoint, is_elsewhere=endpoint.is_elsewhere(zone))
        self._accepting = True
        self._wants_cache_events = True
        """Until a worker says that it sends none."""
        self._knowledge = WorkerKnowledge(time.monotonic)
        """Of the open session."""
        self._description: Any = None
        self._state: Any = None
        self._requests: RunningRequests | None = None
        """Of the open session."""
        self._welcomed = asyncio.Event()
        self._outbox: Outbox | None = None
        """Both of the latest session."""
        self._ready = asyncio.Event()
        self._leaving = False
        self._saying_goodbye = False
        self._wake_run = asyncio.Event()
        self._reason = "connecting to the worker"
        self._was_open = False
        """At any time."""
        self._complaint = ""
        """The last logged one: a worker that stays away is one line, not one a second."""
        self._messages_seen = 0
        self._frames_seen = 0
        self._serving: asyncio.Task[NoReturn] | None = None

    # ------------------------------------------------------------ what the dispatcher sees

    @property
    def can_resume(self) -> bool:
        return not self._leaving

    @property
    def block_size(self) -> int | None:
        return int(self._description.block_size) if self._description is not None else None

    @property
    def available_tokens(self) -> int:
        return self._requests.ledger.available_tokens if self._requests is not None else 0

    @property
    def in_flight(self) -> int:
        return len(self._requests) if self._requests is not None else 0

    @property
    def accepting(self) -> bool:
        return self._accepting

    @accepting.setter
    def accepting(self, accepting: bool) -> None:
        self._accepting = accepting
        self._view.changed()

    def view(self, cost: Price | None = None, chain: PrefixChain = NO_CHAIN) -> WorkerView:
        requests, view = self._requests, self._view.current
        if view is None:
            routable, reason = self._routable()
            if not routable or requests is None:
                view = self._view.away(reason)
            else:
                view = self._view.routable(self._state, self._description, requests, self._knowledge)
        return for_request(view, cost, chain, requests, self._knowledge) if view.routable and requests is not None else view

    def submit(self, generation: Generation, cost: Price, reserved_tokens: int, chain: PrefixChain = NO_CHAIN) -> RequestStream:
        assert self._requests is not None
        if not len(self._requests):
            self._knowledge.woken()
        uncached_tokens = max(1, cost.prompt_tokens - self._knowledge.cached_tokens(chain))
        expectation = self._knowledge.expect(chain)
        stream = self._requests.add(generation, cost, reserved_tokens, uncached_tokens=uncached_tokens, expectation=expectation)
        self._say(submit_message(generation, stream.request_id, reserved_tokens))
        self._view.changed()
        return stream

    def _routable(self) -> tuple[bool, str]:
        if self._requests is None or self._state is None:
            return False, self._reason
        if not self.accepting or self._leaving or self._saying_goodbye or self._state.draining:
            return False, "the worker is draining"
        if not self._state.ready:
            return False, self._state.not_ready_reason or "the worker is not ready"
        if self._description is None:
            return False, self._reason
        return True, ""

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        backoff_s, rng = self._timing.first_backoff_s, Random()
        while not self._leaving:
            began_s, longest_s = time.monotonic(), self._timing.last_backoff_s
            self._serving = asyncio.create_task(self._serve(), name=f"session {self.worker}")
            try:
                await self._serving
            except (CallEnded, DecodeError, Http2Error, SessionBroken, TimeoutError, Unreachable) as error:
                if isinstance(error, CallEnded) and error.status == UNIMPLEMENTED:
                    self._wants_cache_events = False  # an older worker: it is asked again without them
                if isinstance(error, Unreachable):
                    longest_s = min(longest_s, self._timing.starting_backoff_s)
                self._end_session(_sentence(error), is_starting=isinstance(error, Unreachable) and not self._was_open)
            except asyncio.CancelledError:
                self._end_session("the router closed the session")
                if not self._leaving:
                    raise
            except Exception:  # the loop's outermost line: a bug costs this session, not the link
                log.exception("session %s: internal error", self.worker)
                self._end_session("an internal error of the router")
            if time.monotonic() - began_s > self._timing.last_backoff_s:
                backoff_s = self._timing.first_backoff_s
            self._wake_run.clear()
            if not self._leaving:
                try:
                    await asyncio.wait_for(self._wake_run.wait(), min(backoff_s, longest_s) * rng.uniform(0.8, 1.2))
                except TimeoutError:
                    backoff_s = min(2 * backoff_s, longest_s)

    def retire(self) -> None:
        self._leaving = True
        self._view.changed()
        self._leave_when_idle()

    async def close(self) -> None:
        self._leaving = True
        self._view.changed()
        self._leave()

    def _leave_when_idle(self) -> None:
        if self._leaving and self.in_flight == 0:
            self._leave()

    def _leave(self) -> None:
        self._wake_run.set()
        if self._serving is not None:
            self._serving.cancel()

    async def _serve(self) -> NoReturn:
        """One session, from connecting to its end. Always raises."""
        until_s = asyncio.get_running_loop().time() + self._timing.welcome_s
        async with asyncio.timeout_at(until_s):
            call = await open_call(self.endpoint.host, self.endpoint.port, SESSION, self._receive, most_message_bytes=MAX_MESSAGE_BYTES)
        try:
            self._welcomed, self._outbox = asyncio.Event(), Outbox(call)
            hello = wire.Hello(protocol=PROTOCOL, router_id=self._router_id, token=self._token, wants_cache_events=self._wants_cache_events)
            self._outbox.put(wire.ToWorker(hello=hello))
            await first_to_end(until(call.ended), self._expect_welcome(until_s), self._ping(), self._keep_described())
        finally:
            call.close()
        raise SessionBroken("the session ended")

    async def _expect_welcome(self, until_s: float) -> None:
        async with asyncio.timeout_at(until_s):
            await self._welcomed.wait()
        await asyncio.Event().wait()

    def _receive(self, data: bytes) -> None:
        message = wire.FromWorker.FromString(data)
        if self._welcomed.is_set():
            self._messages_seen += 1
            self._handle(message)
        elif message.WhichOneof("message") == "welcome":
            self._welcomed.set()
            self._open_session(message.welcome)
        else:
            raise SessionBroken("it did not begin with Welcome")

    async def _ping(self) -> None:
        silent, seen = 0, -1
        while True:
            await asyncio.sleep(self._timing.ping_every_s)
            if self._requests is None:
                continue  # the welcome has its own time limit
            silent = silent + 1 if self._messages_seen == seen else 0
            if silent >= self._timing.silent_pings:
                raise SessionBroken(f"it has been silent for {silent * self._timing.ping_every_s:.0f} s")
            seen = self._messages_seen
            self._send_ping()

    # ------------------------------------------------------------ messages

    def _open_session(self, welcome: Any) -> None:
        assert self._outbox is not None
        ledger = CreditLedger(welcome.epoch, welcome.state.kv_capacity_tokens)
        self._knowledge = WorkerKnowledge(time.monotonic)
        self._requests = RunningRequests(
            self.worker,
            self.endpoint.model,
            ledger,
            self._listener,
            self._say,
            block_size=lambda: self.block_size or USUAL_BLOCK_SIZE,
            on_prefilled=self._knowledge.prefilled,
        )
        self._saying_goodbye = False
        self._was_open = True
        self._frames_seen = 0
        self._outbox.takes_batches = welcome.takes_batches
        self._reason = "the worker is describing its model"
        log.info("session %s: open, epoch %d", self.worker, welcome.epoch)
        self._learn(welcome.state, welcome.grants)
        self._send_ping()  # the first request's times need to know how far apart the clocks are

    def _say(self, message: Any) -> None:
        assert self._outbox is not None
        self._outbox.put(message)

    def _send_ping(self) -> None:
        self._say(wire.ToWorker(ping=wire.Ping(sent_mono_us=time.monotonic_ns() // 1000)))

    def _handle(self, message: Any) -> None:
        kind = message.WhichOneof("message")
        assert self._requests is not None
        if kind == "frame":
            frame = message.frame
            self._knowledge.heard(frame, self._state)
            for event in frame.cache_events:
                if event.model == self.endpoint.model:
                    self._knowledge.cache_changed(event)
            self._requests.deliver(frame)
            if frame.grants or frame.HasField("state"):
                self._learn(frame.state if frame.HasField("state") else None, frame.grants)
            self._frames_seen += 1
            if self._frames_seen % ACKNOWLEDGE_EVERY_FRAMES == 0:
                self._say(wire.ToWorker(flow=wire.FlowCredit(frames_read_total=self._frames_seen)))
        elif kind == "refused":
            refused = message.refused
            if refused.code == wire.Refused.NOT_READY and self._state is not None:
                self._state.ready, self._state.not_ready_reason = False, refused.message  # until the next state says otherwise
            elif refused.code == wire.Refused.DRAINING:
                self._saying_goodbye = True
            self._requests.refuse(refused.request_id, refusal(refused))
        elif kind == "pong":
            pong = message.pong
            replied_us = pong.replied_mono_us or pong.worker_mono_us  # an older worker tells one stamp
            self._requests.clock.ponged(pong.sent_mono_us, pong.worker_mono_us, replied_us, time.monotonic_ns() // 1000)
        elif kind == "goodbye":
            self._saying_goodbye = True
            log.info("session %s: the worker drains: %s", self.worker, message.goodbye.reason)
        self._view.changed()
        self._leave_when_idle()

    def _learn(self, state: Any, grants: Any) -> None:
        assert self._requests is not None
        ledger = self._requests.ledger
        if state is not None:
            self._state = state
            ledger.capacity_tokens = state.kv_capacity_tokens
            self._knowledge.rates.told(state.prefill_tokens_per_s, state.decode_step_ms)
            self._requests.depth.told(state.num_running + state.num_waiting, self._requests.sequences, state.routers)
            if state.ready:
                self._ready.set()
            else:
                self._ready.clear()
        for grant in grants:
            if grant.model == self.endpoint.model and not grant.adapter:
                ledger.grant(grant.epoch, grant.seq, grant.granted_kv_tokens_total)
        self._view.changed()
        self._listener.capacity_changed(self.endpoint.model)

    def _end_session(self, reason: str, *, is_starting: bool = False) -> None:
        """`is_starting`: it does not listen yet, which is nothing to speak of."""
        was_open, requests = self._requests is not None, self._requests
        self._requests = self._state = self._description = None
        self._view.changed()
        self._reason = "the worker is starting" if is_starting else f"the worker is away: {reason}"
        self._ready.clear()
        if requests is not None:
            requests.lose_all(f"the worker {self.endpoint.name} was lost: {reason}")
        if self._leaving:
            log.info("session %s: closed", self.worker)
        elif was_open or reason != self._complaint:
            level = logging.DEBUG if is_starting else logging.WARNING
            log.log(level, "session %s: %s: %s", self.worker, "ended" if was_open else "cannot be opened", reason)
        self._complaint = reason
        self._listener.session_ended(self.worker, reason)

    # ------------------------------------------------------------ description

    async def _keep_described(self) -> None:
        """Asks once the worker is ready, until it has an answer; then there is nothing more to do in this session."""
        backoff_s = self._timing.first_backoff_s
        while self._description is None:
            await self._ready.wait()
            try:
                async with grpc.aio.insecure_channel(self.endpoint.target, options=CHANNEL_OPTIONS) as channel:
                    description = await describe(WorkerStub(channel), self.endpoint.model, self._artifacts, self._timing.describe_s)
                await self._on_described(description)
                self._description = description
                self.max_model_len = description.max_model_len or None
                self._knowledge.described(description.block_size, description.kv_capacity_tokens)
                self._view.changed()
                if self._requests is not None:
                    self._requests.depth.max_running = description.max_running
            except (grpc.aio.AioRpcError, BadArtifact, OSError, ValueError) as error:
                complaint = f"the worker cannot be described: {_sentence(error)}"
                if complaint != self._reason:
                    log.warning("session %s: %s", self.worker, complaint)
                self._reason = complaint
                self._view.changed()
                self._listener.capacity_changed(self.endpoint.model)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._timing.last_backoff_s)
        self._listener.capacity_changed(self.endpoint.model)
        await asyncio.Event().wait()


async def first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs them together; when one ends or raises, the others are cancelled and awaited, and its exception is this one's."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def until(ended: "asyncio.Future[None]") -> None:
    await ended


def _sentence(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        details = error.details() or error.code().name
        if "failed to connect" in details:
            return f"it cannot be reached ({details.rpartition(': ')[2]})"
        return details if error.code() is grpc.StatusCode.UNAVAILABLE else f"{error.code().name}: {details}"
    if isinstance(error, DecodeError):
        return "it sent what is no message of this protocol"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error)
