"""Two real workers, one killed under running answers: no client may notice more than a pause."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from pagoda_bench.killed_worker import TWO_WORKERS, VICTIMS, Seen, Victim, bodies, formed_bodies, is_of_the_form, read_all, replays
from pagoda_bench.local_stack import LocalStack, local_stack

GREEDY = bodies(20, 400)  # long enough that they run on when the grammars of the others are compiled and all have begun
PENALISED = [{**body, "frequency_penalty": 0.5, "temperature": 0.8, "seed": 5} for body in bodies(4, 400)]
FORMED = formed_bodies(4)
ASKED = [*GREEDY, *PENALISED, *FORMED]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    manifest = tmp_path_factory.mktemp("manifest") / "two.yaml"
    manifest.write_text(TWO_WORKERS)
    with local_stack(manifest, extra_env={"PAGODA_DEVICE": "cpu"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def calm(pair: LocalStack) -> list[Seen]:
    """The answers that nothing disturbs."""
    return asyncio.run(read_all(pair, ASKED))


async def both_serve(pair: LocalStack) -> None:
    """A victim of the test before is back."""
    both = 'pagoda_router_workers{model="tiny",state="routable",variant="default"} 2.0'
    async with httpx.AsyncClient(base_url=pair.url) as client, asyncio.timeout(60):
        while both not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("victim", VICTIMS)
async def test_answers_of_a_killed_worker_or_engine_come_out_as_they_would_have(pair: LocalStack, calm: list[Seen], victim: Victim) -> None:
    await both_serve(pair)
    replays_before = await replays(pair)
    disturbed = await read_all(pair, ASKED, kill_after=400, victim=victim)
    assert await replays(pair) > replays_before, "the killed worker had answers under way"
    assert [seen.error for seen in disturbed] == [""] * len(ASKED)
    for before, after in zip(calm, disturbed, strict=True):
        assert (after.text, after.token_ids, after.finish_reason) == (before.text, before.token_ids, before.finish_reason)
        assert after.usage is not None
        assert before.usage is not None
        assert after.usage["completion_tokens"] == before.usage["completion_tokens"]
        assert after.usage["prompt_tokens"] == before.usage["prompt_tokens"]
    for seen in disturbed[-len(FORMED) :]:
        assert is_of_the_form(seen.text)
