"""The gRPC service: Describe, FetchArtifact, Session, Sleep and Wake, adapters, and a sentence for each reserved call. Moves messages
between streams and the switchboard; decides nothing about requests.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, Protocol

import grpc
from grpc import aio

from pagoda_worker.errors import AdapterError, CannotSleep, ConfigError
from pagoda_worker.facts import AdapterFacts, ModelFacts
from pagoda_worker.front.artifacts import TextArtifact, TextArtifacts
from pagoda_worker.front.outputs import features_of
from pagoda_worker.front.session import RouterSession
from pagoda_worker.front.switchboard import Switchboard
from pagoda_worker.scheduling.blocks import HASH_VERSION
from pagoda_worker.settings.adapters import adapter_folder, check_name
from pagoda_worker.wire import worker_pb2 as pb
from pagoda_worker.wire.worker_pb2_grpc import WorkerServicer

PROTOCOL = 1
HELLO_S = 10.0

Context = Any
"""aio.ServicerContext; the generated stubs name a class that exists for type checkers only."""

log = logging.getLogger(__name__)


class Rest(Protocol):
    """What the calls about sleep and adapters ask of the supervisor."""

    async def sleep(self, level: int) -> int: ...
    async def wake(self) -> int: ...
    async def load_adapter(self, name: str, folder: Path) -> AdapterFacts: ...
    async def unload_adapter(self, name: str) -> None: ...


class WorkerService(WorkerServicer):
    def __init__(
        self, switchboard: Switchboard, rest: Rest, artifacts: TextArtifacts, session_token: str, *, model_cache: Path | None = None
    ) -> None:
        self._model_cache = model_cache
        self._switchboard = switchboard
        self._rest = rest
        self._artifacts = artifacts
        self._token = session_token.encode()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        facts = self._switchboard.facts
        if facts is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._switchboard.not_ready_reason}: ask again when the session says ready")
        assert facts is not None
        return pb.DescribeResponse(
            worker_id=self._switchboard.worker_id,
            version=version("pagoda-worker"),
            protocol=PROTOCOL,
            models=[describe_model(self._switchboard.model, facts, self._artifacts, adapter) for adapter in ("", *self._adapters())],
            device=facts.device,
        )

    async def FetchArtifact(self, request: pb.FetchArtifactRequest, context: Context) -> AsyncIterator[pb.ArtifactChunk]:
        artifact = self._artifacts.by_hash(request.sha256)
        if artifact is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no artifact has the hash {request.sha256[:64]!r}: Describe names those there are"
            )
        assert artifact is not None
        for chunk in artifact.chunks():
            yield pb.ArtifactChunk(data=chunk)

    async def Session(  # type: ignore[override]  # grpc.aio takes a coroutine that writes itself; the stubs know generators only
        self, request_iterator: AsyncIterator[pb.ToWorker], context: Context
    ) -> None:
        session = await self._greet(request_iterator, context)
        # NOTE: a first write that is cancelled on its way has sent the headers, and grpc.aio does not know: it would send them again with
        # the status, which fails, and the router would wait for ever.
        await context.send_initial_metadata(())
        tasks = [
            asyncio.create_task(self._read(session, request_iterator), name=f"session-{session.epoch}-read"),
            asyncio.create_task(self._write(session, context), name=f"session-{session.epoch}-write"),
            asyncio.create_task(session.ended.wait(), name=f"session-{session.epoch}-end"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._switchboard.close(session)
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    log.warning("the stream of router %s broke: %r", session.router_id, outcome)
        if session.end_code is not grpc.StatusCode.OK:
            log.warning("the session of router %s was ended: %s", session.router_id, session.end_details)
            await context.abort(session.end_code, session.end_details)

    async def _greet(self, messages: AsyncIterator[pb.ToWorker], context: Context) -> RouterSession:
        try:
            first = await asyncio.wait_for(anext(messages), HELLO_S)
        except (TimeoutError, StopAsyncIteration):
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, f"no Hello came within {HELLO_S:.0f} s of opening the session")
        if first.WhichOneof("message") != "hello":
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the first message of a session must be Hello")
        hello = first.hello
        await self._check_token(hello.token, context)
        if hello.protocol != PROTOCOL:
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the router speaks protocol {hello.protocol} and this worker {PROTOCOL}: run one version",
            )
        if not hello.router_id:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "Hello names no router_id")
        return self._switchboard.open(hello.router_id, wants_cache_events=hello.wants_cache_events)

    async def _read(self, session: RouterSession, messages: AsyncIterator[pb.ToWorker]) -> None:
        """Until the router closes its side, which is the session's end."""
        async for first in messages:
            for message in (first, *first.more):
                if session.ended.is_set():
                    return
                self._hear(session, message, is_nested=message is not first and bool(message.more))

    def _hear(self, session: RouterSession, message: pb.ToWorker, *, is_nested: bool) -> None:
        kind = "a batch in a batch" if is_nested else message.WhichOneof("message")
        if kind == "submit":
            self._switchboard.submit(session, message.submit)
        elif kind == "cancel":
            self._switchboard.cancel(session, message.cancel)
        elif kind == "draft":
            self._switchboard.draft(session, message.draft)
        elif kind == "flow":
            session.frames_read(message.flow.frames_read_total)
        elif kind == "ping":
            session.send(pb.FromWorker(pong=pb.Pong(sent_mono_us=message.ping.sent_mono_us, worker_mono_us=self._switchboard.now_us())))
        else:
            session.end(grpc.StatusCode.INVALID_ARGUMENT, f"a session's message was {kind or 'empty'}: this worker does not know it there")

    async def _write(self, session: RouterSession, context: Context) -> None:
        while (outgoing := await session.outbox.get()) is not None:
            await context.write(outgoing.leaves(self._switchboard.now_us()))

    # ---- sleep

    async def Sleep(self, request: pb.SleepRequest, context: Context) -> pb.SleepResponse:
        await self._admit(request.model, request.token, context)
        while not self._switchboard.idle.is_set():  # between the event and this task's turn a request may have come
            await self._switchboard.idle.wait()
        try:
            return pb.SleepResponse(freed_bytes=await self._rest.sleep(request.level or 1))
        except CannotSleep as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def Wake(self, request: pb.WakeRequest, context: Context) -> pb.WakeResponse:
        await self._admit(request.model, request.token, context)
        try:
            return pb.WakeResponse(load_us=await self._rest.wake())
        except CannotSleep as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _admit(self, model: str, token: str, context: Context) -> None:
        await self._check_token(token, context)
        if model != self._switchboard.model:
            await _abort(context, grpc.StatusCode.NOT_FOUND, f"this worker serves {self._switchboard.model!r}, not {model[:200]!r}")

    async def _check_token(self, token: str, context: Context) -> None:
        if not hmac.compare_digest(token.encode(), self._token):
            await _abort(
                context, grpc.StatusCode.UNAUTHENTICATED, "the session token is wrong: router and worker must share PAGODA_SESSION_TOKEN"
            )

    # ---- adapters

    def _adapters(self) -> list[str]:
        told = self._switchboard.adapters
        return [] if told is None else [each.name for each in told.loaded]

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:
        await self._admit(request.model, request.token, context)
        try:
            check_name(request.adapter)
            folder = await asyncio.to_thread(adapter_folder, request.source, cache=self._model_cache)
            with self._switchboard.named_source(request.adapter, request.source):
                facts = await self._rest.load_adapter(request.adapter, folder)
        except (AdapterError, ConfigError) as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CannotSleep as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        log.info("adapter %s is loaded from %s: rank %d, version %s", facts.name, request.source, facts.rank, facts.version)
        return pb.LoadAdapterResponse(rank=facts.rank, size_bytes=facts.size_bytes, version=facts.version)

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> pb.UnloadAdapterResponse:
        await self._admit(request.model, request.token, context)
        try:
            await self._rest.unload_adapter(request.adapter)
        except AdapterError as error:
            await _abort(context, grpc.StatusCode.NOT_FOUND, str(error))
        except CannotSleep as error:
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        log.info("adapter %s is unloaded", request.adapter)
        return pb.UnloadAdapterResponse()

    # ---- reserved

    async def Verify(self, request_iterator: AsyncIterator[pb.VerifyRequest], context: Context) -> AsyncIterator[pb.VerifyResponse]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "draft tokens of another worker come down the session: send DraftTokens there")
        yield pb.VerifyResponse()

    async def ExportKv(self, request: pb.ExportKvRequest, context: Context) -> AsyncIterator[pb.KvChunk]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "KV blocks cannot be exported yet")
        yield pb.KvChunk()

    async def ImportKv(self, request_iterator: AsyncIterator[pb.KvChunk], context: Context) -> pb.ImportKvResponse:
        await _reserved(context, "KV blocks cannot be imported yet")


def describe_model(model: str, facts: ModelFacts, artifacts: TextArtifacts, adapter: str = "") -> pb.ModelDescription:
    description = pb.ModelDescription(
        model=model,
        adapter=adapter,
        architecture=facts.architecture,
        dtype=facts.dtype,
        quantization=facts.quantization,
        max_model_len=facts.max_model_len,
        vocab_size=facts.vocab_size,
        eos_token_ids=facts.eos_token_ids,
        tokenizer=_named(artifacts.tokenizer),
        special_tokens_json=artifacts.special_tokens_json,
        block_size=facts.block_size,
        kv_capacity_tokens=facts.kv_capacity_tokens,
        hash_version=HASH_VERSION,
        max_running=facts.max_running,
        max_sequences_per_request=facts.max_sequences_per_request,
        max_top_logprobs=facts.max_top_logprobs,
        features=features_of(facts),
        prefill_tokens_per_s=facts.prefill_tokens_per_s,
        decode_tokens_per_s=facts.decode_tokens_per_s,
        max_model_len_fitting=facts.max_model_len_fitting,
    )
    if facts.bos_token_id is not None:
        description.bos_token_id = facts.bos_token_id
    if artifacts.chat_template is not None:
        description.chat_template.CopyFrom(_named(artifacts.chat_template))
    return description


def _named(artifact: TextArtifact) -> pb.Artifact:
    return pb.Artifact(name=artifact.name, sha256=artifact.sha256, size_bytes=len(artifact.content))


async def _reserved(context: Context, sentence: str) -> NoReturn:
    await _abort(context, grpc.StatusCode.UNIMPLEMENTED, sentence)


async def _abort(context: Context, code: grpc.StatusCode, details: str) -> NoReturn:
    await context.abort(code, details)
    raise AssertionError("abort returned")


def new_server() -> aio.Server:
    """Without port sharing, so that a busy port is an error; with pings, so that a router that vanished is noticed in half a minute."""
    return aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.max_ping_strikes", 0),
        ]
    )
