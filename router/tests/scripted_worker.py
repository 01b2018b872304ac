"""A worker whose every message the test writes: a real grpc.aio server speaking the proto, with no engine behind it.

The test awaits what the router sent (`next_submit`, `next_cancel`, …) and answers step by step (`tokens`, `finish`, `refuse`,
`break_session`). Credits are kept as a worker keeps them: what a finished request reserved comes back with the next grant.
"""

import asyncio
import hashlib
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import grpc.aio

from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import ModelName
from pagoda_router.wire import worker_pb2 as wire
from pagoda_router.wire.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server

TOKENIZER = b'{"version": "1.0", "model": {}}' * 4000  # several chunks
TEMPLATE = b"{% for m in messages %}{{ m.content }}{% endfor %}"
CHUNK_BYTES = 50_000


class ScriptedWorker(WorkerServicer):
    def __init__(
        self,
        model: str = "tiny",
        *,
        capacity_tokens: int = 1024,
        ready: bool = True,
        token: str = "",
        name: str = "",
        variant: str = "default",
    ) -> None:
        self.model = model
        self.variant = variant
        self.name = name or f"{model}-default-0"
        self.port = 0
        self.token = token
        self.state = wire.WorkerState(
            kv_capacity_tokens=capacity_tokens, kv_free_tokens=capacity_tokens, ready=ready, prefill_tokens_per_s=10_000, decode_step_ms=5
        )
        if not ready:
            self.state.not_ready_reason = "the model is loading"
        self.epoch = 0
        self.hellos: asyncio.Queue[Any] = asyncio.Queue()
        self.submits: asyncio.Queue[Any] = asyncio.Queue()
        self.cancels: asyncio.Queue[Any] = asyncio.Queue()
        self.pings: asyncio.Queue[Any] = asyncio.Queue()
        self.drafts: asyncio.Queue[Any] = asyncio.Queue()
        self.flows: asyncio.Queue[Any] = asyncio.Queue()
        self.fetched: list[str] = []
        self.artifacts = {hashlib.sha256(content).hexdigest(): content for content in (TOKENIZER, TEMPLATE)}
        self.sends_corrupt_artifacts = False
        self.described_model = ""
        self.max_model_len = 2048
        self.max_running = 8
        self.described_prefill_tokens_per_s = 4000.0
        self.described_decode_tokens_per_s = 0.0
        self.features: list[int] = []
        self.answers_pings = True
        self.takes_batches = self.takes_packed_ids = True
        self.packed_prompts = 0
        self.messages_read = 0
        """Of a session, after Hello: a batch is one."""
        self.refuses_cache_events = False
        self.grants = True
        self.adapters: dict[str, tuple[str, bool]] = {}
        """Version, and whether it is in a slot of the device, by name."""
        self.life = self.name
        self.adapter_problem = ""
        self.adapter_calls: list[tuple[str, str, str]] = []
        """What was asked, the name, the source."""
        self.clock_ahead_us = 0
        """As of another host."""
        self._server: grpc.aio.Server | None = None
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._reserved: dict[int, int] = {}
        self._sequences: dict[int, int] = {}
        self._returned = 0
        self._grant_seq = 0
        self._step = 0

    # ------------------------------------------------------------ life

    async def start(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 2**20)])
        add_WorkerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def use_tokenizer(self, content: bytes) -> None:
        self.artifacts = {hashlib.sha256(part).hexdigest(): part for part in (content, TEMPLATE)}

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(name=self.name, model=ModelName(self.model), variant=self.variant, template="t1", host="127.0.0.1", port=self.port)

    # ------------------------------------------------------------ service

    async def Describe(self, request: Any, context: Any) -> Any:
        tokenizer, template = self.artifacts
        description = wire.ModelDescription(
            model=self.described_model or self.model,
            max_model_len=self.max_model_len,
            vocab_size=512,
            eos_token_ids=[0],
            tokenizer=wire.Artifact(name="tokenizer.json", sha256=tokenizer),
            chat_template=wire.Artifact(name="chat_template.jinja", sha256=template),
            special_tokens_json='{"eos_token": "<eos>"}',
            block_size=16,
            kv_capacity_tokens=self.state.kv_capacity_tokens,
            max_running=self.max_running,
            max_sequences_per_request=8,
            max_top_logprobs=5,
            features=self.features,
            prefill_tokens_per_s=self.described_prefill_tokens_per_s,
            decode_tokens_per_s=self.described_decode_tokens_per_s,
        )
        return wire.DescribeResponse(worker_id=self.name, protocol=1, models=[description])

    async def FetchArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.fetched.append(request.sha256)
        content = self.artifacts[request.sha256]
        if self.sends_corrupt_artifacts:
            content = content[:-1] + b"?"
        for start in range(0, len(content), CHUNK_BYTES):
            yield wire.ArtifactChunk(data=content[start : start + CHUNK_BYTES])

    async def LoadAdapter(self, request: Any, context: Any) -> Any:
        self.adapter_calls.append(("load", request.adapter, request.source))
        if self.adapter_problem:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.adapter_problem)
        self.tell_adapters({**self.adapters, request.adapter: (f"of-{request.source}", False)})
        return wire.LoadAdapterResponse(rank=8, size_bytes=1000, version=f"of-{request.source}")

    async def UnloadAdapter(self, request: Any, context: Any) -> Any:
        self.adapter_calls.append(("unload", request.adapter, ""))
        self.tell_adapters({name: facts for name, facts in self.adapters.items() if name != request.adapter})
        return wire.UnloadAdapterResponse()

    def tell_adapters(self, adapters: dict[str, tuple[str, bool]]) -> None:
        self.adapters = adapters
        self._frame(adapters=self._adapters_state())

    def _adapters_state(self) -> Any:
        facts = [
            wire.AdapterFacts(name=name, version=version, source=f"file:///{name}", rank=8, size_bytes=1000, resident=resident)
            for name, (version, resident) in self.adapters.items()
        ]
        return wire.AdaptersState(adapters=facts)

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        hello = (await anext(aiter(requests))).hello
        self.hellos.put_nowait(hello)
        if hello.token != self.token:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the session token is wrong")
        if self.refuses_cache_events and hello.wants_cache_events:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "cache events are not sent yet: leave wants_cache_events out")
        self.epoch += 1
        self._outbox = outbox = asyncio.Queue()
        self._reserved.clear()
        self._sequences.clear()
        self._returned = self._grant_seq = 0
        welcome = wire.Welcome(
            epoch=self.epoch,
            worker_id=self.life,
            state=self.state,
            grants=self._grant(),
            takes_batches=self.takes_batches,
            takes_packed_ids=self.takes_packed_ids,
            adapters=self._adapters_state(),
        )
        yield wire.FromWorker(welcome=welcome)
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                message = await outbox.get()
                if message is None:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "killed by the script")
                yield message
        finally:
            reading.cancel()

    async def _read(self, requests: Any) -> None:
        async for batch in requests:
            self.messages_read += 1
            assert self.takes_batches or not batch.more
            for message in (batch, *batch.more):
                self._hear(message)

    def _hear(self, message: Any) -> None:
        kind = message.WhichOneof("message")
        if kind == "submit":
            self._reserved[message.submit.request_id] = message.submit.reserved_kv_tokens
            self._sequences[message.submit.request_id] = message.submit.n
            if packed := message.submit.packed_prompt_ids:
                assert self.takes_packed_ids
                self.packed_prompts += 1
                message.submit.prompt_ids.extend(array("I", packed))
            self.submits.put_nowait(message.submit)
        elif kind == "ping":
            self.pings.put_nowait(message.ping)
            if self.answers_pings:
                self._outbox.put_nowait(
                    wire.FromWorker(pong=wire.Pong(sent_mono_us=message.ping.sent_mono_us, worker_mono_us=self.now_us()))
                )
        else:
            {"cancel": self.cancels, "flow": self.flows, "draft": self.drafts}[kind].put_nowait(getattr(message, kind))

    def _grant(self) -> list[Any]:
        if not self.grants:
            return []
        self._grant_seq += 1
        total = self._returned + self.state.kv_capacity_tokens
        return [wire.Grant(model=self.model, epoch=self.epoch, seq=self._grant_seq, granted_kv_tokens_total=total)]

    def now_us(self) -> int:
        """On this worker's clock."""
        return time.monotonic_ns() // 1000 + self.clock_ahead_us

    # ------------------------------------------------------------ what the router sent

    async def next_submit(self) -> Any:
        return await asyncio.wait_for(self.submits.get(), 10)

    async def next_draft(self) -> Any:
        return await asyncio.wait_for(self.drafts.get(), 10)

    async def next_cancel(self) -> Any:
        return await asyncio.wait_for(self.cancels.get(), 10)

    @property
    def reserved_tokens(self) -> int:
        return sum(self._reserved.values())

    # ------------------------------------------------------------ what the worker says

    def tokens(self, request_id: int, ids: Sequence[int], sequence: int = 0, *, started: bool = False) -> None:
        self.rows([(request_id, sequence, ids)], started=[request_id] if started else [])

    def rows(self, rows: Sequence[tuple[int, int, Sequence[int]]], started: Sequence[int] = (), **more: Any) -> None:
        self._frame(
            request_ids=[row[0] for row in rows],
            sequences=[row[1] for row in rows],
            token_counts=[len(row[2]) for row in rows],
            token_ids=[token for row in rows for token in row[2]],
            started=[wire.Started(request_id=request_id, cached_tokens=2, queue_us=7) for request_id in started],
            **more,
        )

    def finish(
        self,
        request_id: int,
        reason: int = wire.FINISH_STOP,
        *,
        sequence: int = 0,
        tokens: int = 1,
        detail: str = "",
        timings: Any = None,
        engine_died: bool = False,
    ) -> None:
        self._sequences[request_id] -= 1
        grants = []
        if self._sequences[request_id] == 0:
            self._returned += self._reserved.pop(request_id)
            grants = self._grant()
        usage = wire.Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=tokens)
        finish = wire.Finish(
            request_id=request_id,
            sequence=sequence,
            reason=reason,
            stop_token_id=0,
            detail=detail,
            usage=usage,
            timings=timings,
            engine_died=engine_died,
        )
        self._frame(finishes=[finish], grants=grants)

    def embed(self, request_id: int, values: Sequence[float]) -> None:
        self._frame(embeddings=[wire.Embedding(request_id=request_id, values=values)])
        self.finish(request_id, tokens=0)

    def refuse(self, request_id: int, code: int, message: str, param: str = "") -> None:
        self._returned += self._reserved.pop(request_id)
        self._outbox.put_nowait(wire.FromWorker(refused=wire.Refused(request_id=request_id, code=code, message=message, param=param)))
        self._frame(grants=self._grant())

    def change_state(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self.state, name, value)
        self._frame(state=self.state)

    def goodbye(self) -> None:
        self._outbox.put_nowait(wire.FromWorker(goodbye=wire.Goodbye(reason="SIGTERM", drain_us=1_000_000)))

    def break_session(self) -> None:
        """As a killed process does: the stream ends with an error status."""
        self._outbox.put_nowait(None)

    def _frame(self, **fields: Any) -> None:
        self._step += 1
        self._outbox.put_nowait(wire.FromWorker(frame=wire.Frame(step=self._step, at_mono_us=self.now_us(), **fields)))
