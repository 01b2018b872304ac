"""What is asked and when: arrival processes, traces, scenarios, exact prompts."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.errors import SettingsError
from pagoda_bench.load.arrivals import Arrival, arrivals_of, poisson, read_trace
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.load.filler import Filler
from pagoda_bench.load.prompts import Dialect, Prompts
from pagoda_bench.load.scenarios import Conversation, Lengths, Scenario, Turn, conversations, with_arrival


@given(rate=st.floats(0.5, 50), seed=st.integers())
def test_poisson_arrivals_ascend_within_the_time(rate: float, seed: int) -> None:
    times = [arrival.at_s for arrival in poisson(rate, 10.0, random.Random(seed))]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 10.0 or len(times) == 1


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    times = [0.0, *(arrival.at_s for arrival in poisson(20.0, 1000.0, random.Random(1)))]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 20, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize(
    ("name", "content", "arrivals"),
    [
        ("ours.csv", "at_s,prompt_tokens,output_tokens\n1.5,10,3\n1,20,\n", [Arrival(0.0, 20, None), Arrival(0.5, 10, 3)]),
        ("bare.csv", "at_s\n4\n6\n", [Arrival(0.0), Arrival(2.0)]),
        ("mooncake.jsonl", '{"timestamp": 1000, "input_length": 7, "output_length": 2}\n\n', [Arrival(0.0, 7, 2)]),
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5000000,9,1\n2023-11-16 18:15:47.2500000,9,0\n",
            [Arrival(0.0, 9, 1), Arrival(0.75, 9, 1)],
        ),
    ],
)
def test_known_forms_of_traces_are_read(tmp_path: Path, name: str, content: str, arrivals: list[Arrival]) -> None:
    (tmp_path / name).write_text(content)
    assert read_trace(tmp_path / name) == arrivals


def test_a_trace_runs_at_another_speed() -> None:
    assert [a.at_s for a in arrivals_of([{"at_s": 0}, {"at_s": 3}], speed=2.0)] == [0.0, 1.5]


@pytest.mark.parametrize("content", ["", "when,what\n1,2\n", "at_s\nsoon\n"])
def test_an_unknown_trace_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(SettingsError):
        read_trace(tmp_path / "t.csv")


@pytest.mark.parametrize("scenario", list(Scenario))
def test_a_seed_gives_the_same_lengths_again(scenario: Scenario) -> None:
    first, again, other = (list(itertools.islice(conversations(scenario, Lengths(), seed), 30)) for seed in (1, 1, 2))
    assert first == again
    assert scenario not in (Scenario.MIXED, Scenario.AGENTS) or first != other
    assert all(turn.new_tokens > 0 and turn.output_tokens > 0 for plan in first for turn in plan.turns)


def test_mixed_lengths_have_a_heavy_tail() -> None:
    lengths = sorted(plan.prompt_tokens(0) for plan in itertools.islice(conversations(Scenario.MIXED, Lengths(), 0), 2000))
    assert 110 <= lengths[1000] <= 146
    assert lengths[1980] > 6 * lengths[1000]


def test_agents_grow_with_every_turn() -> None:
    plan = next(conversations(Scenario.AGENTS, Lengths(), 0))
    prompts = [plan.prompt_tokens(turn) for turn in range(len(plan.turns))]
    assert len(prompts) >= 3
    assert all(after >= before + 48 + 16 for before, after in itertools.pairwise(prompts))


def test_lengths_can_be_overridden_and_a_trace_wins() -> None:
    plan = next(conversations(Scenario.CHAT, Lengths(100, 7), 0))
    assert (plan.prompt_tokens(0), plan.turns[0].output_tokens) == (100, 7)
    recorded = with_arrival(next(conversations(Scenario.AGENTS, Lengths(), 0)), Arrival(0.0, 33, 5))
    assert (recorded.prompt_tokens(0), len(recorded.turns), recorded.turns[0].output_tokens) == (33, 1, 5)


def prompts(filler: Filler, **dialect: Any) -> Prompts:
    return Prompts(
        "m", Dialect(**{"endpoint": "completions", "token_ids": True, "forced_length": True, **dialect}), filler, prompt_seed="s"
    )


PLAN = Conversation(20, (Turn(10, 4), Turn(6, 3)))


def test_prompts_of_ids_are_exact_grow_and_share_their_beginning() -> None:
    built = prompts(Filler(None))
    one, other = built.dialogue(PLAN, "a"), built.dialogue(PLAN, "b")
    first, second = one.next(), one.next("what was said")
    bodies = [json.loads(request.body) for request in (first, second, other.next())]
    assert [len(body["prompt"]) for body in bodies] == [30, 40, 30] == [first.prompt_tokens, second.prompt_tokens, 30]
    assert bodies[1]["prompt"][:30] == bodies[0]["prompt"]
    assert bodies[2]["prompt"][:20] == bodies[0]["prompt"][:20]
    assert bodies[2]["prompt"][20:] != bodies[0]["prompt"][20:]
    assert (bodies[0]["max_tokens"], bodies[0]["min_tokens"], bodies[0]["ignore_eos"]) == (4, 4, True)
    assert one.is_over


def test_a_server_that_refuses_extras_is_not_sent_them() -> None:
    body = json.loads(prompts(Filler(None), forced_length=False, special_text=False, usage=False).dialogue(PLAN, "a").next().body)
    assert set(body) == {"model", "prompt", "max_tokens", "temperature", "stream"}


@pytest.fixture(scope="module")
def filler() -> Filler:
    return Filler(builtin_tiny())


@given(tokens=st.integers(1, 200), more=st.integers(1, 60), seed=st.integers())
def test_text_has_exactly_the_tokens_asked_for(filler: Filler, tokens: int, more: int, seed: int) -> None:
    source = random.Random(seed)
    text = filler.extend("", tokens, source)
    assert filler.count(text) == tokens
    assert filler.count(filler.extend(text, more, source)) == tokens + more


def test_a_chat_with_a_tokenizer_is_exact_and_carries_the_answers(filler: Filler) -> None:
    dialogue = prompts(filler, endpoint="chat", token_ids=False, overhead_tokens=3).dialogue(PLAN, "a")
    first, second = dialogue.next(), dialogue.next("what was said")
    assert first.prompt_tokens == 30
    messages = json.loads(second.body)["messages"]
    assert filler.count(messages[0]["content"]) == 27
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "what was said"
    assert second.prompt_tokens is None


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no tokenizer in"):
        Filler(tmp_path)
