"""A worker with real sessions and no engine: the simulator's worker plays its steps in real time, and the wire says what a worker says.

One frame a step: rows, who began, who ended, credits, state; the state every 100 ms too. Cache events it has none, since the simulator's
blocks are not hashes of tokens: what the router expects to be cached is right until something is evicted. Called by paced_fleet.py.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc.aio

from pagoda_bench.rank_order.prompts import FIRST_ID, number_of
from pagoda_bench.sim.demand import Conversation
from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_bench.sim.requests import SimRequest
from pagoda_bench.sim.sequence import Sequence as OnWorker
from pagoda_bench.sim.worker import SimWorker
from pagoda_worker.wire import worker_pb2 as wire
from pagoda_worker.wire.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server

MOST_MESSAGE_BYTES = 64 * 2**20
CHUNK_BYTES = 1_000_000


class PacedWorker(WorkerServicer):
    def __init__(self, number: int, model: str, profile: EngineProfile, users: Sequence[Conversation]) -> None:
        """`users`: by the number that their prompts end with."""
        self.port = 0
        self.late_s: list[float] = []
        """How much later than planned each step ended: what the machine had no time for."""
        self._name = f"{model}-{number}"
        self._model = model
        self._profile = profile
        self._users = users
        self._paced = SimWorker(number, profile, self, one_by_one=True)
        self._artifacts = {hashlib.sha256(content).hexdigest(): content for content in text_rules()}
        self._server: grpc.aio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._frame = wire.Frame()
        """Of the step under way."""
        self._reserved: dict[int, int] = {}
        self._received_us: dict[int, int] = {}
        self._began_us: dict[int, int] = {}
        self._returned_tokens = self._grants = self._steps = self._epoch = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES)])
        add_WorkerServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            await self._server.stop(None)

    # ------------------------------------------------------------ service

    async def Describe(self, request: Any, context: Any) -> Any:
        tokenizer, template = self._artifacts
        description = wire.ModelDescription(
            model=self._model,
            max_model_len=2**18,
            vocab_size=512,
            eos_token_ids=[0],
            tokenizer=wire.Artifact(name="tokenizer.json", sha256=tokenizer),
            chat_template=wire.Artifact(name="chat_template.jinja", sha256=template),
            block_size=self._profile.block_size,
            kv_capacity_tokens=self._profile.kv_tokens,
            hash_version=1,
            max_running=self._profile.max_running,
            max_sequences_per_request=1,
            prefill_tokens_per_s=1 / self._profile.prompt_token_s,
        )
        return wire.DescribeResponse(worker_id=self._name, protocol=1, models=[description])

    async def FetchArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        content = self._artifacts[request.sha256]
        for start in range(0, len(content), CHUNK_BYTES):
            yield wire.ArtifactChunk(data=content[start : start + CHUNK_BYTES])

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Of the one router there is."""
        await anext(aiter(requests))
        self._epoch += 1
        welcome = wire.Welcome(epoch=self._epoch, worker_id=self._name, state=self._state(), grants=[self._grant()], takes_batches=True)
        yield wire.FromWorker(welcome=welcome)
        reading = asyncio.create_task(self._read(requests))
        try:
            while True:
                yield await self._outbox.get()
        finally:
            reading.cancel()

    async def _read(self, requests: Any) -> None:
        async for batch in requests:
            for message in (batch, *batch.more):
                kind = message.WhichOneof("message")
                if kind == "submit":
                    self._submit(message.submit)
                elif kind == "ping":
                    pong = wire.Pong(sent_mono_us=message.ping.sent_mono_us, worker_mono_us=now_us(), replied_mono_us=now_us())
                    self._outbox.put_nowait(wire.FromWorker(pong=pong))

    # ------------------------------------------------------------ steps

    def _submit(self, submit: Any) -> None:
        self._reserved[submit.request_id] = submit.reserved_kv_tokens
        self._received_us[submit.request_id] = now_us()
        user = self._users[number_of(submit.prompt_ids)]
        self._paced.submit(SimRequest(submit.request_id, user, 0, 0.0), time.monotonic())
        self._plan()

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._paced.ends_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._paced.ends_s - time.monotonic()), self._step_ended)

    def _step_ended(self) -> None:
        assert self._paced.ends_s is not None
        now_s = max(self._paced.ends_s, time.monotonic())
        self.late_s.append(now_s - self._paced.ends_s)
        frame, decoding = self._frame, [request.number for request in self._paced.decoding]
        self._paced.steps_ended(now_s)
        rows = [*decoding, *frame.request_ids]  # those whose first token it was are in the frame already
        frame.ClearField("request_ids")
        frame.request_ids.extend(rows)
        frame.sequences.extend([0] * len(rows))
        frame.token_counts.extend([1] * len(rows))
        frame.token_ids.extend([FIRST_ID] * len(rows))
        if frame.finishes:
            frame.grants.append(self._grant())
        self._steps += 1
        frame.state.CopyFrom(self._state())
        self._send(frame)
        self._frame = wire.Frame()
        self._plan()

    def _send(self, frame: Any) -> None:
        frame.step, frame.at_mono_us = self._steps, now_us()
        self._outbox.put_nowait(wire.FromWorker(frame=frame))

    def _state(self) -> Any:
        paced, meter = self._paced, self._paced.meter
        return wire.WorkerState(
            num_running=paced.told.running,
            num_waiting=paced.told.waiting,
            queued_prefill_tokens=paced.told.queued_prefill_tokens,
            kv_capacity_tokens=self._profile.kv_tokens,
            kv_free_tokens=paced.pool.available * self._profile.block_size,
            prefill_tokens_per_s=meter.prefill_tokens_per_s,
            decode_step_ms=meter.decode_step_ms,
            prefill_step_ms=meter.prefill_cost.fixed_ms,
            prefill_token_ms=meter.prefill_cost.token_ms,
            ready=True,
        )

    def _grant(self) -> Any:
        self._grants += 1
        total = self._returned_tokens + self._profile.kv_tokens
        return wire.Grant(model=self._model, epoch=self._epoch, seq=self._grants, granted_kv_tokens_total=total)

    # ------------------------------------------------------------ WorkerListener of the simulator

    def begun(self, worker: SimWorker, sequence: OnWorker, now_s: float) -> None:
        number = sequence.request.number
        self._began_us[number] = now_us()
        queue_us = self._began_us[number] - self._received_us[number]
        self._frame.started.append(wire.Started(request_id=number, cached_tokens=sequence.request.cached_tokens, queue_us=queue_us))

    def first_token(self, worker: SimWorker, sequence: OnWorker, now_s: float) -> None:
        sequence.request.first_s = now_s
        self._frame.request_ids.append(sequence.request.number)

    def over(self, worker: SimWorker, sequence: OnWorker, now_s: float) -> None:
        request = sequence.request
        assert request.first_s is not None
        number, received_us, first_us = request.number, self._received_us.pop(request.number), int(request.first_s * 1e6)
        self._returned_tokens += self._reserved.pop(number)
        timings = wire.Timings(
            received_mono_us=received_us,
            handed_mono_us=received_us,
            accepted_mono_us=received_us,
            first_scheduled_mono_us=self._began_us.pop(number),
            first_token_mono_us=first_us,
            first_sent_mono_us=first_us,
            last_token_mono_us=now_us(),
            last_sent_mono_us=now_us(),
        )
        usage = wire.Usage(
            prompt_tokens=request.prompt_tokens, cached_tokens=request.cached_tokens, completion_tokens=request.output_tokens
        )
        self._frame.finishes.append(wire.Finish(request_id=number, reason=wire.FINISH_LENGTH, usage=usage, timings=timings))

    def decoded(self, worker: SimWorker, sequences: int, steps: int, step_s: float) -> None:
        """The router learns it from the frames."""

    def cache_changed(self, worker: SimWorker, stored: list[bytes], evicted: list[bytes], now_s: float) -> None:
        """Not told: see above."""


def text_rules() -> tuple[bytes, bytes]:
    """The builtin model's tokenizer and chat template: what paced workers say is theirs."""
    spec = find_spec("pagoda_worker")  # found, not imported
    assert spec is not None
    assert spec.submodule_search_locations is not None
    tiny = Path(spec.submodule_search_locations[0]) / "builtin" / "tiny"
    template = json.loads((tiny / "tokenizer_config.json").read_text())["chat_template"]
    return (tiny / "tokenizer.json").read_bytes(), template.encode()


def now_us() -> int:
    return time.monotonic_ns() // 1000
