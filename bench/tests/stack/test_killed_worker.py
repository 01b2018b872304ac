"""Two real workers, one killed under running answers: no client may notice more than a pause."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pagoda_bench.killed_worker import TWO_WORKERS, VICTIMS, Victim, bodies, formed_bodies, is_of_the_form, read_all, replays
from pagoda_bench.local_stack import LocalStack, local_stack


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalStack]:
    manifest = tmp_path / "two.yaml"
    manifest.write_text(TWO_WORKERS)
    with local_stack(manifest, extra_env={"PAGODA_DEVICE": "cpu"}) as stack:
        yield stack


@pytest.mark.parametrize("victim", VICTIMS)
async def test_answers_of_a_killed_worker_or_engine_come_out_as_they_would_have(pair: LocalStack, victim: Victim) -> None:
    greedy = bodies(20, 400)  # long enough that they run on when the grammars of the others are compiled and all have begun
    penalised = [{**body, "frequency_penalty": 0.5, "temperature": 0.8, "seed": 5} for body in bodies(4, 400)]
    formed = formed_bodies(4)
    asked = [*greedy, *penalised, *formed]
    calm = await read_all(pair, asked)
    disturbed = await read_all(pair, asked, kill_after=400, victim=victim)
    assert await replays(pair) > 0, "the killed worker had answers under way"
    assert [seen.error for seen in disturbed] == [""] * len(asked)
    for before, after in zip(calm, disturbed, strict=True):
        assert (after.text, after.token_ids, after.finish_reason) == (before.text, before.token_ids, before.finish_reason)
        assert after.usage is not None
        assert before.usage is not None
        assert after.usage["completion_tokens"] == before.usage["completion_tokens"]
        assert after.usage["prompt_tokens"] == before.usage["prompt_tokens"]
    for seen in disturbed[-len(formed) :]:
        assert is_of_the_form(seen.text)
