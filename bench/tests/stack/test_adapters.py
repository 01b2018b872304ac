"""Adapters of a running model, over the whole stack with the unmodified `openai` package: loaded, asked beside the base model, replaced,
unloaded. Nothing is restarted, and a stream that runs meanwhile is not cut."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.local_stack import LocalStack
from pagoda_bench.random_adapters import write_adapters

PATH = "/admin/v1/adapters"
QUESTION = [{"role": "user", "content": "What is 27 + 46?"}]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def router(stack: LocalStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        yield client


def answer(client: openai.OpenAI, model: str) -> str:
    asked = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=12)  # type: ignore[arg-type]
    return asked.choices[0].message.content or ""


def test_adapters_come_change_and_go_while_the_model_answers(client: openai.OpenAI, router: httpx.Client, tmp_path: Path) -> None:
    # Strong enough to change what a small model says.
    folders = write_adapters(builtin_tiny(), tmp_path, count=2, rank=8, targets=ALL, scale=1.0)
    first, second = (f"file://{folder}" for folder in folders.values())
    base = answer(client, "tiny")
    assert router.post(PATH, json={"model": "tiny", "name": "noise", "source": first}).status_code == 200
    stream = client.chat.completions.create(model="noise", messages=QUESTION, stream=True, max_tokens=200, temperature=0)  # type: ignore[call-overload]
    next(stream)
    by_first = answer(client, "noise")
    cards = {card.id: card.model_extra or {} for card in client.models.list()}
    assert (cards["noise"]["parent"], cards["noise"]["root"]) == ("tiny", first)
    assert router.post(PATH, json={"model": "tiny", "name": "noise", "source": second}).status_code == 200
    by_second = answer(client, "noise")
    assert len({base, by_first, by_second}) == 3
    assert router.delete(f"{PATH}/noise").json()["unloaded"] is True
    with pytest.raises(openai.NotFoundError, match="there is no model 'noise'"):
        answer(client, "noise")
    assert [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1] in ("stop", "length")
    assert answer(client, "tiny") == base
