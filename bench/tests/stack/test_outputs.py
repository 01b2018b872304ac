"""What an answer may be made to be, router and worker together, as the unmodified `openai` package asks for it."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pagoda_bench.local_stack import LocalStack, local_stack

MODEL = "tiny"
PLACE = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PLACE}}
NOW: Any = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
TOOLS_IN_TEMPLATE = "{%- if tools -%}{{- '<|system|>' + (tools | tojson) + ' Answer with <tool_call>.<|end|>' -}}{%- endif -%}"


def ask(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_an_answer_keeps_to_a_json_schema_streamed_and_whole(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    }
    schema |= {"required": ["name", "age"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    whole = client.chat.completions.create(model=MODEL, messages=ask("Who?"), response_format=form, temperature=0, max_tokens=80)
    found = json.loads(whole.choices[0].message.content or "")
    assert set(found) == {"name", "age"}
    assert isinstance(found["age"], int)
    stream = client.chat.completions.create(
        model=MODEL, messages=ask("Who?"), response_format=form, temperature=0, max_tokens=80, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"structured_outputs": {"choice": ["red", "green"]}}, "red|green"),
        ({"guided_regex": "[a-c]{3}[0-9]"}, "[a-c]{3}[0-9]"),
        ({"structured_outputs": {"grammar": 'start: "x" "y"+ "z"'}}, "xy+z"),
    ],
    ids=["choice", "regex", "grammar"],
)
def test_an_answer_keeps_to_a_form(client: openai.OpenAI, form: dict[str, object], pattern: str) -> None:
    answer = client.completions.create(model=MODEL, prompt="Say", max_tokens=40, seed=1, n=2, extra_body=form)
    for choice in answer.choices:
        assert choice.finish_reason == "length" or re.fullmatch(pattern, choice.text), choice.text


def test_a_form_that_cannot_be_enforced_is_the_clients_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="Say", extra_body={"guided_regex": "("})
    assert caught.value.param == "guided_regex"


def test_words_and_tokens_can_be_kept_out(client: openai.OpenAI, stack: LocalStack) -> None:
    def sums(**more: object) -> str:
        question = ask("What is 27 + 46?")
        return (
            client.chat.completions.create(model=MODEL, messages=question, temperature=0, extra_body=more).choices[0].message.content or ""
        )

    assert "73" in sums()
    assert "73" not in sums(bad_words=["73", "7", "3"], max_tokens=24)
    ids = httpx.post(f"{stack.url}/tokenize", json={"model": MODEL, "prompt": "1"}).json()["tokens"]
    answer = client.completions.create(model=MODEL, prompt="Say", max_tokens=6, extra_body={"allowed_token_ids": ids})
    assert set(answer.choices[0].text) == {"1"}


def test_logprobs_of_a_prompt_agree_with_those_of_an_echo(client: openai.OpenAI, stack: LocalStack) -> None:
    text = "Sort these numbers: 31, 7"
    ids = httpx.post(f"{stack.url}/tokenize", json={"model": MODEL, "prompt": text}).json()["tokens"]
    fields: Any = {"model": MODEL, "prompt": text, "max_tokens": 1, "temperature": 0}
    echoed = client.completions.create(**fields, echo=True, logprobs=2, extra_body={"min_tokens": 1}).choices[0]
    asked = client.completions.create(**fields, extra_body={"prompt_logprobs": 2}).choices[0]
    known = (asked.model_extra or {})["prompt_logprobs"]
    assert echoed.logprobs is not None
    own = echoed.logprobs.token_logprobs or []
    assert (known[0], own[0], len(known), len(own)) == (None, None, len(ids), len(ids) + 1)
    for token_id, position, logprob in zip(ids[1:], known[1:], own[1:], strict=False):
        assert position[str(token_id)]["logprob"] == pytest.approx(logprob, abs=1e-4)
        assert all(entry["logprob"] <= 0 for entry in position.values())
    assert "".join(echoed.logprobs.tokens or []).startswith(text)
    scored = client.completions.create(**{**fields, "max_tokens": 0}, echo=True, logprobs=2)
    (alone,) = scored.choices
    assert (alone.text, alone.finish_reason) == (text, "length")
    assert alone.logprobs is not None
    assert alone.logprobs.token_logprobs == [None, *(pytest.approx(logprob, abs=1e-4) for logprob in own[1:-1])]
    assert scored.usage is not None
    assert (scored.usage.prompt_tokens, scored.usage.completion_tokens) == (len(ids), 0)


def test_embeddings_have_length_one_and_depend_on_the_text_alone(client: openai.OpenAI) -> None:
    first = client.embeddings.create(model=MODEL, input=["a cat", "a house far away"])
    again = client.embeddings.create(model=MODEL, input="a cat", encoding_format="float", dimensions=len(first.data[0].embedding))

    def product(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    cat, house = (item.embedding for item in first.data)
    assert math.isclose(product(cat, cat), 1, abs_tol=1e-3)
    assert product(cat, again.data[0].embedding) > 0.999 > product(cat, house)
    assert first.usage.prompt_tokens > again.usage.prompt_tokens > 0
    traced = client.embeddings.create(model=MODEL, input="a cat", extra_headers={"x-pagoda-trace": "1"})
    told = (traced.model_extra or {})["pagoda_trace"]
    assert sum(phase["ms"] for phase in told["phases"]) == pytest.approx(told["total_ms"])
    assert "prefill" in {phase["name"] for phase in told["phases"]}


@pytest.fixture(scope="module")
def tool_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The tiny model with a chat template that shows it tools; it was not taught to call any, so calls have to be forced."""
    folder = tmp_path_factory.mktemp("with-tools")
    model = folder / "model"
    with as_file(files("pagoda_worker") / "builtin" / "tiny") as tiny:
        shutil.copytree(tiny, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = TOOLS_IN_TEMPLATE + config["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    manifest = folder / "model.yaml"
    manifest.write_text(_manifest(model))
    with (
        local_stack(manifest, extra_env={"PAGODA_DEVICE": "cpu"}) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60) as client,
    ):
        yield client


def _manifest(model: Path) -> str:
    return json.dumps(
        {
            "apiVersion": "pagoda.dev/v1alpha1",
            "kind": "InferenceModel",
            "metadata": {"name": MODEL},
            "spec": {
                "model": {"source": f"file://{model}"},
                "resources": {"cpu": "500m", "memory": "2Gi"},
                "scaling": {"min": 1, "max": 1},
            },
        }
    )


def test_a_required_call_is_one_of_the_tools_with_arguments_of_its_schema(tool_client: openai.OpenAI) -> None:
    def call(stream: bool) -> list[tuple[str, str]]:
        create = tool_client.chat.completions.create
        fields: Any = {"model": MODEL, "messages": ask("Where?"), "tools": [WEATHER, NOW], "tool_choice": "required"}
        fields |= {"parallel_tool_calls": False, "temperature": 0, "max_tokens": 80, "stream": stream}
        if not stream:
            choice = create(**fields).choices[0]
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            return [(made.function.name, made.function.arguments) for made in choice.message.tool_calls]
        names, arguments, finish = "", "", None
        for chunk in create(**fields):
            for part in chunk.choices[0].delta.tool_calls or []:
                names += part.function.name or ""
                arguments += part.function.arguments or ""
            finish = chunk.choices[0].finish_reason or finish
        assert finish == "tool_calls"
        return [(names, arguments)]

    ((name, arguments),) = whole = call(stream=False)
    assert name in ("weather", "now")
    assert set(json.loads(arguments)) == ({"city"} if name == "weather" else set())
    assert call(stream=True) == whole


def test_a_named_function_is_called_and_its_answer_goes_back(tool_client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "weather"}}
    messages = ask("Where?")
    answer = tool_client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER, NOW], tool_choice=named, temperature=0, max_tokens=60
    )
    (made,) = answer.choices[0].message.tool_calls or []
    assert json.loads(made.function.arguments)["city"] in ("Paris", "Rome")  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError, match="this model knows the roles"):
        # Its own template has no role for a tool's answer, and says so.
        tool_client.chat.completions.create(
            model=MODEL, messages=[*messages, answer.choices[0].message, {"role": "tool", "tool_call_id": made.id, "content": "sun"}]
        )


def test_a_model_that_does_not_call_answers_in_content(tool_client: openai.OpenAI) -> None:
    answer = tool_client.chat.completions.create(
        model=MODEL, messages=ask("What is 27 + 46?"), tools=[WEATHER], temperature=0, max_tokens=60
    )
    choice = answer.choices[0]
    assert (choice.message.tool_calls, choice.finish_reason in ("stop", "length")) == (None, True)
    assert choice.message.content


def test_tools_of_a_model_whose_template_shows_none_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ask("hi"), tools=[WEATHER])
    assert caught.value.param == "tools"
