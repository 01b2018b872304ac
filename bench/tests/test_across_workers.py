"""Drafts from another worker: the delayed network, the arithmetic of gains, the document, and the real pair with workers killed."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from tokenizers import Tokenizer

from pagoda_bench.across_workers.delay import DelayedPort
from pagoda_bench.across_workers.document import points_of, with_table
from pagoda_bench.across_workers.measure import NONE, OFF, REMOTE, Answer, ask, rows_of
from pagoda_bench.across_workers.pair import Pace, running_pair
from pagoda_bench.errors import ResultFormatError
from pagoda_bench.results import FOLDER, read
from pagoda_bench.speculation.document import DOCUMENT
from pagoda_bench.speculation.work import MIX, Case, prompts_of
from pagoda_bench.tiny.models import FOLDERS


async def test_a_delayed_port_keeps_the_order_and_takes_its_time():
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    delayed = DelayedPort(server.sockets[0].getsockname()[1])
    await delayed.start()
    delayed.one_way_s = 0.02
    reader, writer = await asyncio.open_connection("127.0.0.1", delayed.port)
    began_s = asyncio.get_running_loop().time()
    for number in range(50):
        writer.write(b"%03d" % number)
        if number == 25:
            delayed.one_way_s = 0.01  # what is under way is not overtaken
        await asyncio.sleep(0)
    assert await reader.readexactly(150) == b"".join(b"%03d" % number for number in range(50))
    assert asyncio.get_running_loop().time() - began_s >= 0.02
    writer.close()
    await delayed.stop()
    server.close()


def test_a_gain_is_of_one_round_and_aimed_at_where_it_can_pay():
    rounds = [
        {NONE: [Answer(2.0, 20, "a", 0, 0)], REMOTE: [Answer(1.0, 20, "a", 10, 8)]},
        {NONE: [Answer(2.0, 20, "b", 0, 0)], REMOTE: [Answer(0.5, 20, "c", 10, 10)]},
        {NONE: [Answer(2.0, 20, "d", 0, 0)], REMOTE: [Answer(2.0, 20, "d", 0, 0)]},
    ]
    rows = {(row.system, row.metric): row for row in rows_of("t=0 step=20ms rtt=0ms", rounds, can_pay=True)}
    gain = rows[REMOTE, "gain"]
    assert (gain.value, gain.low, gain.high, gain.met) == (2.0, 1.0, 4.0, True)
    assert rows[NONE, "output_tokens_per_s"].value == 10
    assert (rows[REMOTE, "accepted_ratio"].value, rows[REMOTE, "from_drafts_ratio"].value) == (0.9, 0.3)
    assert rows[REMOTE, "identical_ratio"].value == pytest.approx(2 / 3)
    assert all(row.aim is None for row in rows_of("t=0 step=20ms rtt=90ms", rounds, can_pay=False))


def test_the_document_has_the_table_of_the_result_file():
    result = read(FOLDER / "speculation-router.json")
    assert with_table(DOCUMENT.read_text(), result) == DOCUMENT.read_text()
    assert {point.step_ms for point in points_of(result)}
    assert all(row.value == 1 for row in result.rows if row.metric == "identical_ratio"), "an answer that drafts changed"


def test_several_streams_are_points_of_their_own():
    rounds = [{NONE: [Answer(2.0, 20, "a", 0, 0)], REMOTE: [Answer(1.0, 20, "a", 10, 8)]}]
    rows = [row for case in ("t=0 step=20ms rtt=20ms", "t=0 step=20ms rtt=20ms c=8") for row in rows_of(case, rounds, can_pay=False)]
    result = replace(read(FOLDER / "speculation-router.json"), rows=rows)
    assert [(point.streams, point.gain) for point in points_of(result)] == [(1, 2.0), (8, 2.0)]
    assert "| 8 | 0 | 20 ms | 20 ms | 10.0 | 20.0 |" in with_table(DOCUMENT.read_text(), result)


def test_a_file_of_something_else_is_refused():
    with pytest.raises(ResultFormatError, match="no case of two workers"):
        points_of(read(FOLDER / "speculation.json"))


async def test_answers_are_the_same_while_workers_are_killed_beneath_them(tmp_path: Path):
    """Two real workers and a real router: with drafts, without, while the drafting engine dies, and while the verifying one does."""
    pace = Pace(target_s=0.01, draft_s=0.002)
    prompt = prompts_of(Case(MIX, 1, 5), Tokenizer.from_file(str(FOLDERS["target"] / "tokenizer.json")), number=1)[-1]
    async with running_pair(pace, target=FOLDERS["target"], draft=FOLDERS["draft"], draft_tokens=6, scratch=tmp_path) as pair:
        pair.set_round_trip(0.004)
        async with httpx.AsyncClient(base_url=pair.url, timeout=60) as client:
            plain = [await ask(client, prompt, temperature=each, headers=OFF) for each in (0.0, 1.5)]
            drafted = [await ask(client, prompt, temperature=each, headers={}) for each in (0.0, 1.5)]
            assert [answer.text for answer in drafted] == [answer.text for answer in plain]
            assert [answer.drafts for answer in plain] == [0, 0]
            expected = await long_answer(client, prompt, headers=OFF)
            assert await long_answer(client, prompt) == expected
            accepted = 'pagoda_router_draft_tokens_total{kind="accepted",model="target"} 0.0'
            assert accepted not in (await client.get("/metrics")).text, "some drafts were used"
            assert await long_answer(client, prompt, dies=pair.target.pid) == expected
            assert await long_answer(client, prompt, dies=pair.drafter.pid) == expected
            told = (await client.get("/metrics")).text
            assert 'pagoda_router_replays_total{model="target"} 1.0' in told, "the answer was under way when its engine died"
            gave_up = 'pagoda_router_drafting_stopped_total{model="target",reason="no_drafter"} 1.0'
            assert gave_up in told, "and so it was when the drafting one died, and there was no other"


async def long_answer(
    client: httpx.AsyncClient, prompt: list[int], *, headers: dict[str, str] | None = None, dies: int | None = None
) -> str:
    """More tokens than a branch has. `dies`: the worker whose engine is killed after the first piece of the answer, while the drafting one
    still writes ahead."""
    body = {"model": "target", "prompt": prompt, "max_tokens": 150, "ignore_eos": True, "temperature": 1.5, "seed": 5, "stream": True}
    text = ""
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for engine in psutil.Process(dies).children() if dies is not None and not text else ():
                    os.kill(engine.pid, signal.SIGKILL)
                text += json.loads(line[6:])["choices"][0]["text"]
    return text
