"""Requests that came together go through each stage together, and a request alone waits for nobody."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import recorded
from foreign_server import stream
from test_backends import rig as relaying
from test_direct import TOKENIZER, asking, listening, routed

from pagoda_router.catalog import CatalogEntry, ServedName
from pagoda_router.errors import ModelUnavailable
from pagoda_router.generation import NOBODY, ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.cohort import Cohort, Member, alone, next_stage
from pagoda_router.http.direct import DirectResponse
from pagoda_router.http.surface import RequestOutcome, SilentObserver, SurfaceSettings
from pagoda_router.openai import answers
from pagoda_router.openai.schemas import ChatRequest
from pagoda_router.openai.target import Target, Targets
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer
from pagoda_router.wire import worker_pb2 as wire


def test_a_member_has_company_until_it_or_all_others_left() -> None:
    cohort = Cohort()
    first = Member(cohort)
    assert not first.in_company
    second = Member(cohort)
    assert first.in_company
    assert second.in_company
    first.leave()
    first.leave()
    assert cohort.coming == 1
    assert not first.in_company
    assert not second.in_company
    assert not alone().in_company


async def test_a_stage_ends_when_all_that_are_ready_have_come_as_far() -> None:
    seen: list[str] = []

    async def go(name: str) -> None:
        for stage in ("parsed", "placed"):
            seen.append(f"{name} {stage}")
            await next_stage()

    await asyncio.gather(go("a"), go("b"))
    assert seen == ["a parsed", "b parsed", "a placed", "b placed"]


async def test_who_waits_for_a_worker_is_nobodys_company() -> None:
    cohort = Cohort()
    waiting, other = Member(cohort), Member(cohort)
    company: list[bool] = []

    class Asleep:
        def text(self, model: str, variant: str | None) -> None:
            return None

        async def hold(self, *_: Any) -> None:
            company.append(other.in_company)
            raise ModelUnavailable("nobody comes")

    targets = Targets(Asleep(), Asleep(), lambda: 0.0)  # type: ignore[arg-type]
    entry = CatalogEntry(
        served_name=ServedName("tiny"), model=ModelName("tiny"), created=0, ready=False, reason="asleep", max_model_len=None
    )
    tracer = Tracer(TraceRing(0), None, clock=lambda: 0.0, calendar=lambda: 0.0)
    trace = tracer.begin(RequestOutcome(endpoint="chat", request_id="r"), None, None)
    with pytest.raises(ModelUnavailable):
        await targets.wait_for(entry, trace, None, lambda: 1, NOBODY, waiting)
    assert company == [False]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stage of the router's code ran, request after request."""
    seen: list[str] = []
    parse, encode = answers.parse_request, Target.encode

    def parsed(body: bytes, kind: type[ChatRequest]) -> ChatRequest:
        seen.append("parse")
        return parse(body, kind)

    async def encoded(self: Target, *arguments: Any, **more: Any) -> Any:
        seen.append("tokenize")
        return await encode(self, *arguments, **more)

    monkeypatch.setattr(answers, "parse_request", parsed)
    monkeypatch.setattr(Target, "encode", encoded)
    return seen


async def test_requests_that_came_together_are_all_parsed_before_one_is_tokenized(tmp_path: Path, stages: list[str]) -> None:
    cohort = Cohort()
    async with routed(tmp_path, cohort) as (_, worker, port), asking(port), asking(port), asking(port):
        for _ in range(3):
            await worker.next_submit()
        assert stages == [*["parse"] * 3, *["tokenize"] * 3]
        assert cohort.coming == 0


async def test_those_that_came_after_one_another_do_not_wait(tmp_path: Path, stages: list[str]) -> None:
    async with routed(tmp_path) as (_, worker, port), asking(port):
        await worker.next_submit()
        async with asking(port):
            await worker.next_submit()
            assert stages == ["parse", "tokenize", "parse", "tokenize"]


async def test_a_relayed_request_is_nobodys_company(tmp_path: Path) -> None:
    cohort, answered = Cohort(), asyncio.Event()
    async with recorded.server("vllm", stream(answered, *recorded.VLLM_STREAM)) as server, relaying(tmp_path, server) as router:
        app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=SurfaceSettings())
        async with listening(app, cohort) as port, asking(port, model="chat") as client:
            await server.next_request()
            assert cohort.coming == 0
            answered.set()
            await client.read_until("[DONE]")


async def test_embeddings_are_nobodys_company_while_they_are_made(tmp_path: Path) -> None:
    cohort = Cohort()
    async with routed(tmp_path, cohort, features=[wire.FEATURE_EMBEDDINGS]) as (_, worker, port):
        body = b'{"model": "tiny", "input": "hello"}'
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head % len(body) + body)
        submit = await worker.next_submit()
        assert (submit.embedding, cohort.coming) == (True, 0)
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 3,
    ],
    ids=["no generation", "refused", "left half way", "pipelined"],
)
async def test_nobody_stays_in_the_cohort_however_a_request_ends(tmp_path: Path, sent: bytes) -> None:
    cohort = Cohort()
    async with routed(tmp_path, cohort) as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(10):
            if sent.endswith(b"{"):  # never answered: it is there when it has come
                while not cohort.coming:
                    await asyncio.sleep(0)
            else:
                assert await reader.read(1)
            writer.close()
            await writer.wait_closed()
            while cohort.coming:
                await asyncio.sleep(0)


async def test_what_comes_after_an_answers_last_byte_finds_it_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape, and the next request of a key whose limit the answered one held a part of. A router that was held up at the last byte finds
    what its client sent next in the same turn."""
    counted: list[bool] = []
    complete = DirectResponse._complete

    class Counting(SilentObserver):
        finished = False

        def request_finished(self, outcome: RequestOutcome) -> None:
            self.finished = True

    observer = Counting()

    async def next_request() -> None:
        counted.append(observer.finished)

    def completed(self: DirectResponse) -> None:
        complete(self)
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: tasks.append(loop.create_task(next_request())))

    tasks: list[asyncio.Task[None]] = []
    monkeypatch.setattr(DirectResponse, "_complete", completed)
    async with routed(tmp_path, observer=observer) as (_, worker, port), asking(port) as client:
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, TOKENIZER.encode("hello", add_special_tokens=False).ids, started=True)
        worker.finish(submit.request_id, tokens=1)
        await client.read_until("data: [DONE]")
        await asyncio.gather(*tasks)
    assert counted == [True]
