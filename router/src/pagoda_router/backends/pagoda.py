"""The link to one of our own workers: a connection, one Session on it, reconnected for as long as discovery names the worker.

Owns the session's life: connecting, Hello, pings, Describe, backoff. What an open one says and holds is session.OpenSession's. Knows no
policy; fleet.py makes and retires links, the dispatcher submits on them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any, NoReturn

import grpc.aio
from google.protobuf.message import DecodeError

from pagoda_router.adapters import NO_ADAPTERS, LoadedAdapter
from pagoda_router.admission.credits import Price
from pagoda_router.backends.base import LinkListener
from pagoda_router.backends.describe import describe_at
from pagoda_router.backends.http2 import UNIMPLEMENTED, Http2Error
from pagoda_router.backends.request_stream import RequestStream
from pagoda_router.backends.session import OpenSession
from pagoda_router.backends.session_call import MAX_MESSAGE_BYTES, CallEnded, Outbox, Unreachable, open_call
from pagoda_router.backends.session_life import USUAL_BLOCK_SIZE, LinkTiming, SessionBroken, first_to_end, keep_pinging, sentence_of
from pagoda_router.backends.session_view import SessionView, for_request
from pagoda_router.backends.translate import submit_message
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import Generation, WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.prefixes import NO_CHAIN, PrefixChain
from pagoda_router.text.artifacts import ArtifactCache, BadArtifact
from pagoda_router.wire import worker_pb2 as wire

log = logging.getLogger(__name__)

PROTOCOL = 1
SESSION = "/pagoda.worker.v1.Worker/Session"


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_described` gets the ModelDescription once its artifacts are cached, before the worker becomes routable. `zone`: this
        router's; empty: not known. `clock`: seconds, by which a worker with something to do is silent."""
        self.endpoint = endpoint
        self.worker = WorkerId(f"{endpoint.name}@{endpoint.target}")
        self.max_model_len: int | None = None
        self._router_id, self._token = router_id, token
        self._artifacts = artifacts
        self._listener = listener
        self._on_described = on_described
        self._timing, self._clock = timing or LinkTiming(), clock
        self._view = SessionView(self.worker, endpoint, is_elsewhere=endpoint.is_elsewhere(zone))
        self._accepting = True
        self._wants_cache_events = True
        """Until a worker says that it sends none."""
        self._session: OpenSession | None = None
        self._description: Any = None
        """Of the open session."""
        self._welcomed = asyncio.Event()
        self._outbox: Outbox | None = None
        """Both of the latest session."""
        self._leaving = False
        self._wake_run = asyncio.Event()
        self._reason = "connecting to the worker"
        self._was_open = False
        """At any time."""
        self._complaint = ""
        """The last logged one: a worker that stays away is one line, not one a second."""
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
        return self._session.requests.ledger.available_tokens if self._session is not None else 0

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]:
        return self._session.adapters if self._session is not None else NO_ADAPTERS

    @property
    def life(self) -> str:
        return self._session.life if self._session is not None else ""

    @property
    def in_flight(self) -> int:
        return len(self._session.requests) if self._session is not None else 0

    @property
    def accepting(self) -> bool:
        return self._accepting

    @accepting.setter
    def accepting(self, accepting: bool) -> None:
        self._accepting = accepting
        self._view.changed()

    @property
    def routable(self) -> bool:
        return self._routable()[0] if self._view.current is None else self._view.current.routable

    def view(self, cost: Price | None = None, chain: PrefixChain = NO_CHAIN) -> WorkerView:
        session, view = self._session, self._view.current
        if view is None:
            routable, reason = self._routable()
            view = self._view.routable(session, self._description) if routable and session is not None else self._view.away(reason)
        return for_request(view, cost, chain, session) if view.routable and session is not None else view

    def submit(self, generation: Generation, cost: Price, reserved_tokens: int, chain: PrefixChain = NO_CHAIN) -> RequestStream:
        assert self._session is not None
        assert self._outbox is not None
        requests, knowledge = self._session.requests, self._session.knowledge
        if not len(requests):
            knowledge.woken()
        uncached_tokens = max(1, cost.prompt_tokens - knowledge.cached_tokens(chain))
        expectation = knowledge.expect(chain)
        takes_drafts = wire.FEATURE_VERIFY in self._description.features
        stream = requests.add(
            generation, cost, reserved_tokens, uncached_tokens=uncached_tokens, expectation=expectation, takes_drafts=takes_drafts
        )
        self._outbox.put(submit_message(generation, stream.request_id, reserved_tokens, packs_ids=self._outbox.packs_ids))
        self._view.changed()
        return stream

    def _routable(self) -> tuple[bool, str]:
        session = self._session
        if session is None:
            return False, self._reason
        if not self.accepting or self._leaving or session.is_draining or session.state.draining:
            return False, "the worker is draining"
        if not session.state.ready:
            return False, session.state.not_ready_reason or "the worker is not ready"
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
                self._end_session(sentence_of(error), is_starting=isinstance(error, Unreachable) and not self._was_open)
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
            pinging = keep_pinging(lambda: self._session, self._timing)
            await first_to_end(call.over(), self._expect_welcome(until_s), pinging, self._keep_described())
        finally:
            call.close()
        raise SessionBroken("the session ended")

    async def _expect_welcome(self, until_s: float) -> None:
        async with asyncio.timeout_at(until_s):
            await self._welcomed.wait()
        await asyncio.Event().wait()

    def _receive(self, data: bytes) -> None:
        message = wire.FromWorker.FromString(data)
        if self._session is not None:
            self._session.handle(message)
            self._leave_when_idle()
        elif message.WhichOneof("message") == "welcome":
            self._open_session(message.welcome)
            self._welcomed.set()
        else:
            raise SessionBroken("it did not begin with Welcome")

    def _open_session(self, welcome: Any) -> None:
        assert self._outbox is not None
        self._session = OpenSession(
            self.worker,
            self.endpoint,
            self._outbox,
            self._listener,
            welcome,
            block_size=lambda: self.block_size or USUAL_BLOCK_SIZE,
            changed=self._view.changed,
            clock=self._clock,
        )
        self._was_open = True
        self._reason = "the worker is describing its model"
        self._session.begin(welcome)

    def _end_session(self, reason: str, *, is_starting: bool = False) -> None:
        """`is_starting`: it does not listen yet, which is nothing to speak of."""
        session, self._session, self._description = self._session, None, None
        self._view.changed()
        self._reason = "the worker is starting" if is_starting else f"the worker is away: {reason}"
        if session is not None:
            session.requests.lose_all(f"the worker {self.endpoint.name} was lost: {reason}")
        if self._leaving:
            log.info("session %s: closed", self.worker)
        elif session is not None or reason != self._complaint:
            level = logging.DEBUG if is_starting else logging.WARNING
            log.log(level, "session %s: %s: %s", self.worker, "ended" if session is not None else "cannot be opened", reason)
        self._complaint = reason
        self._listener.session_ended(self.worker, reason)

    # ------------------------------------------------------------ description

    async def _keep_described(self) -> None:
        """Asks once the worker is ready, until it has an answer; then there is nothing more to do in this session."""
        backoff_s = self._timing.first_backoff_s
        await self._welcomed.wait()
        session = self._session
        assert session is not None
        while self._description is None:
            await session.ready.wait()
            try:
                description = await describe_at(self.endpoint.target, self.endpoint.model, self._artifacts, self._timing.describe_s)
                await self._on_described(description)
                self._description = description
                self.max_model_len = description.max_model_len or None
                session.knowledge.described(description.block_size, description.kv_capacity_tokens)
                session.requests.depth.max_running = description.max_running
                self._view.changed()
            except (grpc.aio.AioRpcError, BadArtifact, OSError, ValueError) as error:
                complaint = f"the worker cannot be described: {sentence_of(error)}"
                if complaint != self._reason:
                    log.warning("session %s: %s", self.worker, complaint)
                self._reason = complaint
                self._view.changed()
                self._listener.capacity_changed(self.endpoint.model)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._timing.last_backoff_s)
        self._listener.capacity_changed(self.endpoint.model)
        await asyncio.Event().wait()
