"""The link to a worker that is somebody else's server and speaks OpenAI's HTTP: looked at every second, requests relayed.

Such a worker grants no credits. Its room is its KV cache less the larger of two: what this router has in flight there, and what its own
metrics say is in use, by whomever. Between two looks only the router's ledger moves. Knows no shapes of any one server: dialects do.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

import aiohttp

from pagoda_router.adapters import NO_ADAPTERS
from pagoda_router.admission.credits import Price, service_tokens, used_kv_tokens
from pagoda_router.backends.answer_rates import Rates
from pagoda_router.backends.base import NOT_LISTENING, LinkListener, Settlement
from pagoda_router.backends.destination import Destination
from pagoda_router.backends.dialect import Load
from pagoda_router.backends.http1 import Connections, Patience
from pagoda_router.backends.looks import DIALECTS, Unhealthy, described_model, fetched
from pagoda_router.backends.openai_stream import OpenAiStream
from pagoda_router.backends.session_view import views_of
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import EndReason, Generation, WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.prefixes import NO_CHAIN, Expectation, KnownPrefixes, PrefixChain

log = logging.getLogger(__name__)

UNTOLD_CAPACITY_TOKENS = 2**31
"""Of a server that does not tell the size of its KV cache: then only the number of requests bounds what is sent there."""
USUAL_MAX_RUNNING = 256
MOST_KNOWN_TOKENS = 2**22
"""Of prompts remembered per worker whose capacity is not told."""
MOST_WAITING_THERE = 4
"""Requests that may queue inside a worker: enough to fill a place that ends between two looks. More wait here, where order is kept."""
LOOKS_MISSED = 2
"""By a server that is silent: it says when it is asked, however busy its engine is."""
KEEP_CONNECTION_S = 3.0
"""Under the 5 s after which uvicorn closes an idle connection, so that no request is sent into a closing one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTiming:
    """Seconds. Tests shorten them."""

    connect_s: float = 5.0
    silence_s: float = 600.0
    """Of an answer, as long as OpenAI's own clients wait."""
    look_every_s: float = 1.0
    look_when_away_s: float = 0.5
    look_timeout_s: float = 5.0
    failed_looks: int = 3
    """In a row that time out, after which the worker takes no requests; one that refuses connections takes none at once."""


class OpenAiLink:
    """Implements WorkerLink."""

    def __init__(self, endpoint: Endpoint, *, listener: LinkListener, timing: HttpTiming | None = None, zone: str = "") -> None:
        """`zone`: this router's; empty: not known."""
        self.endpoint = endpoint
        self.worker = WorkerId(f"{endpoint.name}@{endpoint.target}")
        self.accepting = True
        self.max_model_len: int | None = None
        self.adapters = NO_ADAPTERS
        self.life = ""
        self._dialect = DIALECTS[endpoint.backend]
        self._url = f"http://{endpoint.target}"
        self._listener = listener
        self._timing = timing or HttpTiming()
        self._load = Load()
        self._streams: dict[OpenAiStream, int] = {}
        """Each with the tokens reserved for it."""
        self._outstanding_tokens = 0
        """Their sum."""
        self._sequences = 0
        """Of theirs."""
        self._unbegun: list[OpenAiStream] = []
        """Of them, those that may not have begun."""
        self._since_look_tokens = 0
        """By how much that sum has grown since the last look, whose metrics do not show it."""
        self._rates = Rates()
        self._prefixes: KnownPrefixes | None = None
        """That its prefix cache should have, by what was sent there: it tells of none. Rebuilt when its blocks turn out otherwise."""
        self._away, self._here = views_of(self.worker, endpoint, is_elsewhere=endpoint.is_elsewhere(zone))
        self._model = ""
        """What the server calls it; empty until it was healthy and told."""
        self._reason = "connecting to the worker"
        self._complaint = ""
        self._failed_looks = 0
        self._looked_s = time.monotonic()
        """When a look went well last."""
        patience = Patience(connect_s=self._timing.connect_s, silence_s=self._timing.silence_s, keep_s=KEEP_CONNECTION_S)
        self._connections = Connections(endpoint.host, endpoint.port, patience)
        """Of requests. Looks have a client of their own, as whatever happens to a request should not be theirs to wait for."""
        self._leaving = False
        self._closing = False
        self._woken = asyncio.Event()

    # ------------------------------------------------------------ what the dispatcher sees

    @property
    def can_resume(self) -> bool:
        return False  # its servers take text, and would begin the answer anew

    @property
    def block_size(self) -> int | None:
        return self._load.block_size

    @property
    def available_tokens(self) -> int:
        """What is used is what this router has there, or what the last look saw and this router sent since: whichever is more."""
        return self.capacity_tokens - max(self._outstanding_tokens, self._seen_tokens)

    @property
    def _seen_tokens(self) -> int:
        return 0 if self._load.kv_used is None else int(self._load.kv_used * self.capacity_tokens) + self._since_look_tokens

    @property
    def capacity_tokens(self) -> int:
        return self._load.capacity_tokens or UNTOLD_CAPACITY_TOKENS

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    @property
    def routable(self) -> bool:
        return bool(self._model) and not self._leaving and self.accepting

    def view(self, cost: Price | None = None, chain: PrefixChain = NO_CHAIN) -> WorkerView:
        if not self.routable:
            self._away.reason = self._reason if not self._model else "the worker is draining"
            return self._away
        view, load = self._here, self._load
        view.capacity_tokens, view.available_tokens = self.capacity_tokens, self.available_tokens
        view.reserved_tokens, view.used_tokens = self._outstanding_tokens, self._seen_tokens
        view.reservable_tokens = None if cost is None else self._reservation_for(cost)
        view.silent_s = self._silent_s if self._streams else 0.0
        view.cached_tokens = 0 if self._prefixes is None else self._prefixes.cached_tokens(chain)
        self._unbegun = [stream for stream in self._unbegun if not stream.begun]  # so a look costs what waits there, not what runs
        view.queued_prefill_tokens = sum([stream.cost.prompt_tokens for stream in self._unbegun])
        view.running, view.waiting = max(load.running, self._sequences), load.waiting
        view.max_running = load.max_running or USUAL_MAX_RUNNING
        view.prefill_tokens_per_s, view.decode_step_ms = self._rates.prefill_tokens_per_s, self._rates.decode_step_ms
        return view

    @property
    def _silent_s(self) -> float:
        """Beyond the time in which a look should have gone well: an answer that is no stream says nothing for as long as it is made."""
        heard_s = max(self._looked_s, self._connections.heard_s)
        return max(0.0, time.monotonic() - heard_s - LOOKS_MISSED * self._timing.look_every_s)

    def _reservation_for(self, cost: Price) -> int | None:
        if self._load.waiting > MOST_WAITING_THERE or self.in_flight >= (self._load.max_running or USUAL_MAX_RUNNING):
            return None
        wanted = min(cost.kv_tokens, self.capacity_tokens)
        return wanted if wanted <= self.available_tokens else None

    def submit(self, generation: Generation, cost: Price, reserved_tokens: int, chain: PrefixChain = NO_CHAIN) -> OpenAiStream:
        assert self._model
        to = Destination(self._connections, self._dialect, self.endpoint.target, self._model, self.endpoint.name)
        expectation = self._expect(chain) if chain.hashes else None
        stream = OpenAiStream(generation, cost, self.worker, to, self._over, expectation)
        self._streams[stream] = reserved_tokens
        self._sequences += generation.n
        self._unbegun.append(stream)
        self._outstanding_tokens += reserved_tokens
        self._since_look_tokens += reserved_tokens
        stream.start()
        return stream

    def _expect(self, chain: PrefixChain) -> Expectation:
        if self._prefixes is None or self._prefixes.block_size != chain.block_size:
            self._prefixes = KnownPrefixes(chain.block_size, max(1, min(self.capacity_tokens, MOST_KNOWN_TOKENS) // chain.block_size))
        return self._prefixes.expect(chain)

    def _over(self, stream: OpenAiStream) -> None:
        """Its reservation settles, exactly once."""
        reserved_tokens = self._streams.pop(stream)
        self._sequences -= stream.generation.n
        if stream in self._unbegun:
            self._unbegun.remove(stream)
        self._outstanding_tokens -= reserved_tokens
        self._since_look_tokens -= reserved_tokens
        if stream.finished:
            self._rates.learn(stream)
        output_tokens = stream.usage.completion_tokens if stream.usage is not None else stream.seen_tokens
        prompt_tokens = stream.usage.prompt_tokens if stream.usage is not None else stream.cost.prompt_tokens
        cached_tokens = stream.usage.cached_tokens if stream.usage is not None else 0
        generation = stream.generation
        n = generation.n
        self._listener.settled(
            Settlement(
                model=self.endpoint.model,
                reserved_tokens=reserved_tokens,
                used_tokens=used_kv_tokens(prompt_tokens, [output_tokens], self.block_size or 16, cached_tokens) if stream.begun else 0,
                predicted_output_tokens=stream.cost.output_tokens,
                output_tokens=[output_tokens // n] * n if stream.finished and not generation.embedding else [],
                ran=stream.begun,
                failure=stream.hurt,
                worker=self.worker,
                tenant=generation.tenant,
                request_class=generation.request_class,
                charged_service_tokens=stream.cost.service_tokens,
                service_tokens=service_tokens(prompt_tokens, cached_tokens, output_tokens) if stream.begun else 0,
            )
        )
        if stream.lost or stream.hurt == "refused":
            self._woken.set()  # look again now, not in a second
        self._listener.capacity_changed(self.endpoint.model)

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        timing = self._timing
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timing.connect_s, sock_read=timing.silence_s)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_CONNECTION_S)
        headers = {"accept-encoding": "identity", "user-agent": "pagoda-router"}
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False, headers=headers) as session:
            while not self._closing and not (self._leaving and not self._streams):
                self._woken.clear()
                try:
                    await self._look(session)
                    self._connections.close_old()
                except Exception:  # the loop's outermost line: a bug costs one look, not the link
                    log.exception("worker %s: internal error", self.worker)
                try:
                    async with asyncio.timeout(timing.look_every_s if self._model else timing.look_when_away_s):
                        await self._woken.wait()
                except TimeoutError:
                    pass
            for stream in list(self._streams):
                stream.end_all(EndReason.ENGINE_ERROR, "the router closed the connection")
            while self._streams:
                await asyncio.sleep(0)  # they settle in a turn of their own
            self._connections.close_idle()

    def retire(self) -> None:
        self._leaving = True
        self._woken.set()

    async def close(self) -> None:
        self._leaving = self._closing = True
        self._woken.set()

    async def _look(self, session: aiohttp.ClientSession) -> None:
        """Healthy? How full? A server that is healthy and does not tell its load is used by the router's own count alone."""
        before = (self._model, self._load)
        try:
            async with asyncio.timeout(self._timing.look_timeout_s):
                await fetched(session, self._url, "/health")
                if not self._model:
                    await self._learn_model(session)
            self._failed_looks, self._looked_s = 0, time.monotonic()
        except (aiohttp.ClientError, OSError, TimeoutError, Unhealthy) as error:
            self._failed(error)
            return
        await self._learn_load(session)
        if before != (self._model, self._load):
            self._listener.capacity_changed(self.endpoint.model)

    def _failed(self, error: BaseException) -> None:
        self._failed_looks += 1
        is_busy = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientConnectorError)
        if self._model and is_busy and self._failed_looks < self._timing.failed_looks:
            return
        is_starting = isinstance(error, aiohttp.ClientConnectorError) and not self._model
        was_open, self._model = bool(self._model), ""
        reason = NOT_LISTENING if isinstance(error, aiohttp.ClientConnectorError) else str(error) or "it did not answer in time"
        self._reason = "the worker is starting" if is_starting else f"the worker is away: {reason}"
        if was_open or self._reason != self._complaint:
            log.log(logging.DEBUG if is_starting else logging.WARNING, "worker %s: %s", self.worker, self._reason)
        if was_open:
            self._listener.session_ended(self.worker, reason)
        if was_open or self._reason != self._complaint:
            self._listener.capacity_changed(self.endpoint.model)
        self._complaint = self._reason

    async def _learn_model(self, session: aiohttp.ClientSession) -> None:
        mine = await described_model(session, self._url, self.endpoint.model)
        length = mine.get("max_model_len")
        self.max_model_len = length if isinstance(length, int) and length > 0 else None
        self._model = mine.get("id", self.endpoint.model)
        self._complaint = ""
        log.info("worker %s: %s is ready, model %s", self.worker, self._dialect.name, self._model)

    async def _learn_load(self, session: aiohttp.ClientSession) -> None:
        load = self._load
        sent_before = self._since_look_tokens
        for path in self._dialect.load_paths:
            try:
                async with asyncio.timeout(self._timing.look_timeout_s):
                    load = self._dialect.load(path, await fetched(session, self._url, path), load)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, Unhealthy) as error:
                load = Load(capacity_tokens=load.capacity_tokens, block_size=load.block_size, max_running=load.max_running)
                log.debug("worker %s: no load from %s: %s", self.worker, path, error)
        self._load = load
        self._since_look_tokens -= sent_before
