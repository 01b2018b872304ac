"""A front with ports of its own inside a test's event loop, and a router's side of the wire."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc import aio
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from pagoda_worker.config import EngineConfig
from pagoda_worker.front.gpu import GpuReader
from pagoda_worker.front.process import Front
from pagoda_worker.settings.sources import BUILTIN_DIR
from pagoda_worker.settings.worker import WorkerSettings
from pagoda_worker.wire import worker_pb2 as pb
from pagoda_worker.wire.worker_pb2_grpc import WorkerStub

SCRIPTED_COMMAND = (sys.executable, str(Path(__file__).with_name("scripted_engine.py")))
TINY = BUILTIN_DIR / "tiny"
MODEL = "tiny"
PATIENCE_S = 60.0


class Router:
    """One session, its messages sorted into lists as they come; `until` waits for a condition over them."""

    def __init__(
        self, stub: Any, *, router_id: str = "r1", token: str = "", protocol: int = 1, acknowledges: bool = True, cache_events: bool = False
    ) -> None:
        self._call = stub.Session()
        self._hello = pb.Hello(protocol=protocol, router_id=router_id, token=token, wants_cache_events=cache_events)
        self._acknowledges = acknowledges
        self._news = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self.welcome = pb.Welcome()
        self.frames: list[pb.Frame] = []
        self.refused: dict[int, pb.Refused] = {}
        self.pongs: list[pb.Pong] = []
        self.goodbyes: list[pb.Goodbye] = []
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.finishes: dict[tuple[int, int], pb.Finish] = {}
        self.started: dict[int, pb.Started] = {}
        self.cached: set[bytes] = set()
        """By cache events."""
        self.state = pb.WorkerState()
        self.granted = 0
        self.ended: grpc.StatusCode | None = None
        self.end_details = ""

    async def connect(self) -> "Router":
        await self._call.write(pb.ToWorker(hello=self._hello))
        first = await self._call.read()
        assert isinstance(first, pb.FromWorker), f"the worker ended the session: {await self._call.code()} {await self._call.details()}"
        self.welcome = first.welcome
        self._note(first.welcome.state, first.welcome.grants)
        self._reader = asyncio.create_task(self._read())
        return self

    async def submit(self, request_id: int, prompt_ids: Sequence[int], max_tokens: int = 5, **fields: Any) -> None:
        fields.setdefault("model", MODEL)
        await self.send(pb.ToWorker(submit=pb.Submit(request_id=request_id, prompt_ids=prompt_ids, max_tokens=max_tokens, **fields)))

    async def cancel(self, request_id: int, **fields: Any) -> None:
        await self.send(pb.ToWorker(cancel=pb.Cancel(request_id=request_id, **fields)))

    async def send(self, message: pb.ToWorker) -> None:
        async with self._writing:  # a stream takes one message at a time, and frames are acknowledged as they come
            await self._call.write(message)

    async def close_our_side(self) -> None:
        await self._call.done_writing()

    async def until(self, condition: Callable[[], object]) -> None:
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(condition), PATIENCE_S)

    async def finish(self, request_id: int, sequence: int = 0) -> pb.Finish:
        await self.until(lambda: (request_id, sequence) in self.finishes)
        return self.finishes[request_id, sequence]

    async def refusal(self, request_id: int) -> pb.Refused:
        await self.until(lambda: request_id in self.refused)
        return self.refused[request_id]

    async def end(self) -> tuple[grpc.StatusCode, str]:
        await self.until(lambda: self.ended is not None)
        assert self.ended is not None
        return self.ended, self.end_details

    def vanish(self) -> None:
        self._call.cancel()

    async def leave(self) -> None:
        self._call.cancel()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        with contextlib.suppress(aio.AioRpcError, asyncio.CancelledError):
            while isinstance(message := await self._call.read(), pb.FromWorker):
                await self._take(message)
        async with self._news:
            self.ended, self.end_details = await self._call.code(), await self._call.details()
            self._news.notify_all()

    async def _take(self, message: pb.FromWorker) -> None:
        kind = message.WhichOneof("message")
        async with self._news:
            if kind == "frame":
                self._take_frame(message.frame)
            elif kind == "refused":
                self.refused[message.refused.request_id] = message.refused
            elif kind == "pong":
                self.pongs.append(message.pong)
            elif kind == "goodbye":
                self.goodbyes.append(message.goodbye)
            self._news.notify_all()
        if kind == "frame" and self._acknowledges and len(self.frames) % 100 == 0:
            await self.send(pb.ToWorker(flow=pb.FlowCredit(frames_read_total=len(self.frames))))

    def _take_frame(self, frame: pb.Frame) -> None:
        self.frames.append(frame)
        for event in frame.cache_events:
            hashes = [event.block_hashes[start : start + 16] for start in range(0, len(event.block_hashes), 16)]
            if event.kind == pb.CacheEvent.STORED:
                self.cached.update(hashes)
            elif event.kind == pb.CacheEvent.REMOVED:
                self.cached.difference_update(hashes)
            else:
                self.cached.clear()
        position = 0
        for request_id, sequence, count in zip(frame.request_ids, frame.sequences, frame.token_counts, strict=True):
            self.tokens.setdefault((request_id, sequence), []).extend(frame.token_ids[position : position + count])
            position += count
        assert position == len(frame.token_ids)
        for finish in frame.finishes:
            assert (finish.request_id, finish.sequence) not in self.finishes, "a sequence ended twice"
            self.finishes[finish.request_id, finish.sequence] = finish
        for started in frame.started:
            self.started[started.request_id] = started
        if frame.HasField("state"):
            self._note(frame.state, [])
        self._note(self.state, frame.grants)

    def _note(self, state: pb.WorkerState, grants: Sequence[pb.Grant]) -> None:
        self.state = state
        for grant in grants:
            self.granted = grant.granted_kv_tokens_total


async def first_answer(stub: Any, first: pb.ToWorker) -> tuple[grpc.StatusCode, str]:
    """How the worker ends a session that begins wrongly."""
    call = stub.Session()
    with contextlib.suppress(aio.AioRpcError):
        await call.write(first)
        await call.read()
    return await call.code(), await call.details()


class Bench:
    """A running front and what a test needs of it."""

    def __init__(self, front: Front, stub: Any, http: httpx.AsyncClient) -> None:
        self.front = front
        self.stub = stub
        self.http = http
        self.run: asyncio.Task[None] | None = None
        self._routers: list[Router] = []

    async def router(self, *, ready: bool = True, **options: Any) -> Router:
        router = await Router(self.stub, **options).connect()
        self._routers.append(router)
        if ready:
            await router.until(lambda: router.state.ready)
        return router

    async def metric(self, name: str, **labels: str) -> float:
        """Of all samples of that name whose labels agree, together."""
        samples = [sample for family in await self.scrape() for sample in family.samples if sample.name == name]
        assert samples, f"/metrics has no {name}"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    async def scrape(self) -> list[Metric]:
        return list(text_string_to_metric_families((await self.http.get("/metrics")).text))

    async def close(self) -> None:
        for router in self._routers:
            await router.leave()


@contextlib.asynccontextmanager
async def running_front(
    *,
    command: Sequence[str] = SCRIPTED_COMMAND,
    config: EngineConfig | None = None,
    gpu_reader: GpuReader | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """Ends the front at once when the block ends."""
    worker_settings = WorkerSettings(
        model_name=MODEL, engine=config or EngineConfig(model_dir=TINY, device="cpu"), grpc_port=0, http_port=0, **settings
    )
    front = Front(worker_settings, engine_command=command, gpu_reader=gpu_reader)
    started = asyncio.Event()
    run = asyncio.create_task(front.run(started=started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait({run, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if run.done():
        waiting.cancel()
        run.result()
    async with (
        aio.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.http_port}") as http,
    ):
        bench = Bench(front, WorkerStub(channel), http)
        bench.run = run
        try:
            yield bench
        finally:
            await bench.close()
            front.stop()
            front.stop()
            await run
