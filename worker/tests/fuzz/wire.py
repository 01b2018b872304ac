"""Random messages of two routers to a worker with its real engine process: `python -m fuzz.wire --rounds 100` in `worker/tests/`.

Sound requests, broken ones (bytes of sound ones changed), cancels, drafts, credits, batches, adapters that come and go, routers that vanish
or are replaced, sleep. Nothing may end the engine; on a session that lives every request is refused or ends once in each sequence; and
afterwards nothing is held and the next request is answered.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

import grpc
import psutil
from front_support import MODEL, TINY, Bench, Router, running_front
from google.protobuf.message import DecodeError
from grpc import aio
from random_adapter import write_adapter

from fuzz.cases import draw
from pagoda_worker.config import EngineConfig
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.request import Request
from pagoda_worker.wire import worker_pb2 as pb

LONGEST = 64
CONFIG = EngineConfig(
    model_dir=TINY,
    device="cpu",
    threads=1,
    max_running=6,
    max_batch_tokens=24,
    max_model_len=LONGEST,
    block_size=4,
    kv_cache_bytes=(2 * LONGEST // 4) * 4 * 5 * 2 * 2 * 64 * 2,
    speculative="remote",
    adapter_slots=1,
)


REFUSALS = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INVALID_ARGUMENT,
)
"""Of what is asked beside sessions."""


class WireFuzzer:
    def __init__(self, bench: Bench, seed: int, adapter: Path) -> None:
        self._bench, self._random, self._adapter = bench, random.Random(seed), adapter
        self._next = 1
        self.sent = self.ended = self.refused = self.broken = 0

    async def round(self, messages: int = 40) -> None:
        """Of one session; another router's may be open beside it, and the one before of the same router, which this one replaces."""
        name, listens = f"fuzz-{self._random.randrange(2)}", self._random.random() < 0.3
        try:
            router = await self._bench.router(router_id=name, ready=False, cache_events=listens)
        except (aio.AioRpcError, AssertionError) as replaced:
            if "replaced this one" not in str(replaced):
                raise
            return
        asked: dict[int, int] = {}
        try:
            for _ in range(messages):
                if self._random.random() < 0.06:
                    await self._admin()
                await router.send(self._message(router, asked))
                if self._random.random() < 0.3:
                    await asyncio.sleep(0)
        except (aio.AioRpcError, asyncio.InvalidStateError):
            await router.end()  # it said something that ends a session
        self.sent += len(asked)
        if self._random.random() < 0.15:
            router.vanish()
            return
        try:
            await router.until(lambda: router.ended is not None or all(self._is_over(router, *each) for each in asked.items()))
        except TimeoutError as late:
            if router._reader is not None and router._reader.done():
                router._reader.result()
            waiting = [each for each in asked.items() if not self._is_over(router, *each)]
            raise AssertionError(f"these wait for ever, {waiting}: {router.state}") from late
        if router.ended is not None:
            self.broken += 1
            here = router.end_details == "Internal error from Core"  # grpc's client, whose write met the end
            assert here or router.ended in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ABORTED), (router.ended, router.end_details)
            return
        self.refused += len(router.refused)
        self.ended += len(router.finishes)
        for request_id, n in asked.items():
            finishes = [index for each, index in router.finishes if each == request_id]
            assert sorted(finishes) == ([] if request_id in router.refused else list(range(n))), (request_id, n, finishes)
        errors = [finish for finish in router.finishes.values() if finish.engine_died or finish.reason == pb.FINISH_UNSPECIFIED]
        assert not errors, errors[0]

    @staticmethod
    def _is_over(router: Router, request_id: int, n: int) -> bool:
        return request_id in router.refused or all((request_id, index) in router.finishes for index in range(n))

    def _message(self, router: Router, asked: dict[int, int], *, batches: bool = True) -> pb.ToWorker:
        r = self._random
        kind = r.random() if batches else r.uniform(0, 0.9)
        if kind < 0.45:
            return self._asked(pb.ToWorker(submit=self._submit()), asked)
        if kind < 0.55:
            return self._asked(self._damaged(pb.ToWorker(submit=self._submit())), asked)
        known = r.choice([*asked, 7, 2**63]) if asked else 7
        if kind < 0.7:
            reason = r.choice([pb.CANCEL_UNSPECIFIED, pb.CANCEL_STOP_STRING, pb.CANCEL_CLIENT_GONE])
            return pb.ToWorker(cancel=pb.Cancel(request_id=known, sequence=r.choice([None, 0, 1, 2**32 - 1]), reason=reason))
        if kind < 0.85:
            drafts = [r.choice([r.randrange(1024), 2**32 - 1 if r.random() < 0.05 else 5]) for _ in range(r.choice([0, 1, 7, 300]))]
            index, position = r.choice([0, 0, 1, 99]), r.choice([0, 1, 3, 9, 2**32 - 1])
            return pb.ToWorker(draft=pb.DraftTokens(request_id=known, sequence=index, position=position, token_ids=drafts))
        if kind < 0.9:
            return pb.ToWorker(ping=pb.Ping(sent_mono_us=r.randrange(2**64)))
        if kind < 0.985:
            first, *more = [self._message(router, asked, batches=False) for _ in range(r.randint(2, 5))]
            first.more.extend(more)
            return first
        return r.choice([pb.ToWorker(), pb.ToWorker(flow=pb.FlowCredit(frames_read_total=2**40)), pb.ToWorker(hello=pb.Hello())])

    @staticmethod
    def _asked(message: pb.ToWorker, asked: dict[int, int]) -> pb.ToWorker:
        if message.WhichOneof("message") == "submit":
            asked[message.submit.request_id] = message.submit.n or 1
        return message

    def _damaged(self, message: pb.ToWorker) -> pb.ToWorker:
        """Some of its bytes are others, and it still is a message."""
        whole = message.SerializeToString()
        while True:
            data = bytearray(whole)
            for _ in range(self._random.randint(1, 3)):
                data[self._random.randrange(len(data))] = self._random.randrange(256)
            try:
                damaged = pb.ToWorker.FromString(bytes(data))
            except DecodeError:
                continue
            if damaged.WhichOneof("message") == "submit" and not damaged.more:
                damaged.submit.request_id = message.submit.request_id
                return damaged

    def _submit(self) -> pb.Submit:
        requests = draw(self._random.randrange(2**31), ranks=False).requests
        request = self._random.choice(requests) if requests else Request(request_id="", prompt_ids=[5])
        self._next += 1
        return submit_of(request, self._next)

    async def _admin(self) -> None:
        r, name = self._random, self._random.choice(["a", "b", "c"])
        calls = [
            self._bench.stub.LoadAdapter(pb.LoadAdapterRequest(model=MODEL, adapter=name, source=f"file://{self._adapter}")),
            self._bench.stub.LoadAdapter(pb.LoadAdapterRequest(model=MODEL, adapter=name, source="file:///nowhere")),
            self._bench.stub.UnloadAdapter(pb.UnloadAdapterRequest(model=MODEL, adapter=name)),
            self._bench.stub.Sleep(pb.SleepRequest(model=MODEL, level=r.choice([1, 2])), timeout=0.05),
            self._bench.stub.Wake(pb.WakeRequest(model=MODEL), timeout=5),
        ]
        chosen = r.randrange(len(calls))
        for other in calls[:chosen] + calls[chosen + 1 :]:
            other.cancel()
        try:
            await calls[chosen]
        except aio.AioRpcError as error:
            if error.code() not in REFUSALS:
                raise


def submit_of(request: Request, request_id: int) -> pb.Submit:
    s = request.sampling
    sampling = pb.Sampling(
        temperature=s.temperature,
        top_p=s.top_p,
        top_k=s.top_k,
        min_p=s.min_p,
        frequency_penalty=s.frequency_penalty,
        presence_penalty=s.presence_penalty,
        repetition_penalty=s.repetition_penalty,
        seed=s.seed,
        logit_bias=[pb.LogitBias(token_id=token, bias=bias) for token, bias in s.logit_bias.items()],
        allowed_token_ids=s.allowed_token_ids,
        bad_words=[pb.TokenIds(ids=word) for word in s.bad_words],
    )
    structured = None
    if request.structured is not None:
        kind, text = request.structured.kind, request.structured.text
        structured = pb.StructuredOutput(
            **{"choices": pb.Choices(choices=request.structured.choices)} if kind == "choice" else {kind: text or True}  # type: ignore[arg-type]
        )
    return pb.Submit(
        request_id=request_id,
        model=MODEL,
        adapter=request.adapter,
        prompt_ids=request.prompt_ids,
        n=request.n,
        sampling=sampling,
        max_tokens=min(request.max_tokens, 20),
        min_tokens=min(request.min_tokens, 20),
        stop_token_ids=request.stop_token_ids,
        ignore_eos=request.ignore_eos,
        top_logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs,
        embedding=request.embedding,
        structured=structured,
        toggles=pb.FeatureToggles(no_prefix_cache=not request.use_prefix_cache, no_batching=request.runs_alone),
        cache_salt=request.cache_salt,
        priority=request.priority,
        deadline_us=None if request.deadline_s is None else int(request.deadline_s * 1e6),
        resume_ids=request.resume_ids,
        trace=pb.TraceContext(want_timings=request.want_timings),
        reserved_kv_tokens=40,
    )


async def fuzz(seed: int, rounds: int, adapter: Path) -> WireFuzzer:
    async with running_front(command=ENGINE_COMMAND, config=CONFIG) as bench:
        await (await bench.router(router_id="before")).leave()
        engines = psutil.Process().children()
        fuzzer = WireFuzzer(bench, seed, adapter)
        for number in range(rounds):
            pair = [fuzzer.round() for _ in range(1 + number % 2)]
            await asyncio.gather(*pair)
        router = await bench.router(router_id="after")
        await router.submit(1, [5, 6, 7], max_tokens=3, ignore_eos=True)
        assert (await router.finish(1)).reason == pb.FINISH_LENGTH
        await router.until(lambda: router.state.num_running == 0 and router.state.kv_free_tokens == router.state.kv_capacity_tokens)
        assert psutil.Process().children() == engines, "an engine process ended"
        return fuzzer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    print(f"--seed {arguments.seed} --rounds {arguments.rounds}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        done = asyncio.run(fuzz(arguments.seed, arguments.rounds, write_adapter(Path(folder) / "a", TINY, rank=4)))
    print(f"{done.sent} requests: {done.ended} sequences ended, {done.refused} refused, {done.broken} sessions were broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
