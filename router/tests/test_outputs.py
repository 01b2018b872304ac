"""Tool calls, thinking, structured output, prompt logprobs, embeddings and tokens, as the unmodified `openai` package sees them."""

import base64
import dataclasses
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from scripted import (
    Caller,
    Script,
    ScriptedCatalog,
    ScriptedDispatcher,
    assets_of,
    byte_level_tokenizer,
    chat,
    sentencepiece_tokenizer,
    served,
)
from test_reply import texts
from tokenizers import AddedToken, Tokenizer

from pagoda_router.abilities import Feature
from pagoda_router.catalog import TextAssets
from pagoda_router.errors import BadRequest
from pagoda_router.generation import EndReason, Generation, Structured
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings

TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools> Answer with <tool_call>.{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.reasoning_content is defined %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
HI: Any = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture
def able(catalog: ScriptedCatalog) -> ScriptedCatalog:
    catalog.assets = dataclasses.replace(catalog.assets, chat_template=TEMPLATE, features=frozenset(Feature))
    return catalog


@pytest.fixture
def url(dispatcher: ScriptedDispatcher, able: ScriptedCatalog) -> Iterator[str]:
    with served(create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings())) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def call(dispatcher: ScriptedDispatcher, able: ScriptedCatalog) -> Caller:
    return Caller(create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings()))


def says(tokenizer: Tokenizer, text: str, **more: Any) -> Script:
    return Script(batches=[[i] for i in tokenizer.encode(text).ids], **more)


def prompt_of(dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(list(dispatcher.generations[-1].prompt_ids), skip_special_tokens=False)


# ---------------------------------------------------------------- tool calls


def test_a_tool_call_comes_out_and_its_answer_goes_back_in(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, f"Let me look.\n{CALL}")
    answer = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER])
    assert '{"type": "function", "function": {"name": "weather"' in prompt_of(dispatcher, tokenizer)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
    (made,) = choice.message.tool_calls or []
    assert (made.type, made.function.name, json.loads(made.function.arguments)) == ("function", "weather", {"city": "Paris"})  # type: ignore[union-attr]
    dispatcher.script = says(tokenizer, "Sunny.")
    messages = [*HI, choice.message, {"role": "tool", "tool_call_id": made.id, "content": "sun"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    assert '<tool_call>{"city": "Paris"}</tool_call><|end|><|tool|>sun' in prompt_of(dispatcher, tokenizer)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (
        "stop",
        "Sunny.",
        None,
    )


async def test_a_streamed_call_arrives_in_pieces_that_join_to_the_whole_answers(
    url: str, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, f"Two.\n{CALL}\n{CALL.replace('Paris', 'Rome')}")
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        stream = await client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER], stream=True)
        chunks = [chunk async for chunk in stream]
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert [part.index for part in parts if part.id] == [0, 1]
    assert len({part.id for part in parts if part.id}) == 2
    assert all(part.type == "function" and part.function and part.function.name == "weather" for part in parts if part.id)
    assert all(part.function and part.function.name is None for part in parts if not part.id)
    assert len(parts) > 4
    arguments = ["".join(part.function.arguments or "" for part in parts if part.index == i and part.function) for i in range(2)]
    assert [json.loads(text)["city"] for text in arguments] == ["Paris", "Rome"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Two."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_clients_own_accumulator_reads_the_call(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = says(tokenizer, CALL)
    with client.chat.completions.stream(model="tiny", messages=HI, tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    (made,) = final.choices[0].message.tool_calls or []
    assert (made.function.name, json.loads(made.function.arguments)) == ("weather", {"city": "Paris"})
    assert final.choices[0].message.content in (None, "")


@pytest.mark.parametrize("stream", [False, True])
async def test_without_parallel_calls_the_first_one_ends_the_work(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, stream: bool
) -> None:
    dispatcher.script = says(tokenizer, CALL + CALL)
    await call("POST", "/v1/chat/completions", chat(tools=[WEATHER], parallel_tool_calls=False, stream=stream))
    if stream:
        made = [part for event in call.events[:-1] for part in event["choices"][0]["delta"].get("tool_calls", []) if "id" in part]
        finish = call.events[-2]["choices"][0]["finish_reason"]
    else:
        made, finish = call.json["choices"][0]["message"]["tool_calls"], call.json["choices"][0]["finish_reason"]
    assert (len(made), finish) == (1, "tool_calls")
    assert dispatcher.streams[0].stopped == [0]


async def test_a_call_that_the_limit_cuts_ends_by_length(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = says(tokenizer, CALL[:60], reason=EndReason.LENGTH)
    await call("POST", "/v1/chat/completions", chat(tools=[WEATHER]))
    (choice,) = call.json["choices"]
    assert (choice["finish_reason"], choice["message"]["tool_calls"][0]["function"]["name"]) == ("length", "weather")


async def test_tools_that_must_not_be_called_are_not_shown_and_not_read(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, CALL)
    await call("POST", "/v1/chat/completions", chat(tools=[WEATHER], tool_choice="none"))
    assert "weather" not in prompt_of(dispatcher, tokenizer)
    assert call.json["choices"][0]["message"]["content"] == CALL


def test_a_required_call_is_forced_by_a_schema_of_all_tools(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, '[{"name": "now", "parameters": {}}, {"name": "weather", "parameters": {"city": "Rome"}}]')
    answer = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER, NOW], tool_choice="required")
    made = answer.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in made] == [("now", "{}"), ("weather", '{"city": "Rome"}')]  # type: ignore[union-attr]
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("tool_calls", None)
    structured = dispatcher.generations[0].structured
    assert structured is not None
    schema = json.loads(structured.json_schema or "")
    assert (schema["type"], schema["minItems"]) == ("array", 1)
    assert [call["properties"]["name"]["const"] for call in schema["items"]["anyOf"]] == ["weather", "now"]
    assert schema["items"]["anyOf"][0]["properties"]["parameters"] == PARAMETERS


def test_a_named_functions_arguments_are_the_whole_reply(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, '{"city": "Oslo"}')
    named: Any = {"type": "function", "function": {"name": "weather"}}
    answer = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER, NOW], tool_choice=named)
    (made,) = answer.choices[0].message.tool_calls or []
    assert (made.function.name, made.function.arguments) == ("weather", '{"city": "Oslo"}')  # type: ignore[union-attr]
    assert dispatcher.generations[0].structured == Structured(json_schema=json.dumps(PARAMETERS, separators=(",", ":")))


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_of_many_tools_only_the_allowed_ones_are_shown_and_forced(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, mode: str
) -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NOW]}}
    await call("POST", "/v1/chat/completions", chat(tools=[WEATHER, NOW], tool_choice=allowed))
    assert call.status == 200
    assert '"now"' in prompt_of(dispatcher, tokenizer)
    assert "weather" not in prompt_of(dispatcher, tokenizer)
    structured = dispatcher.generations[0].structured
    schema = json.loads(structured.json_schema or "") if structured is not None else None
    assert (schema is None) == (mode == "auto")
    if schema is not None:
        assert schema["items"]["properties"]["name"]["const"] == "now"


async def test_definitions_of_a_tools_parameters_move_to_the_schemas_root(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    parameters = {"type": "object", "properties": {"at": {"$ref": "#/$defs/Place"}}, "$defs": {"Place": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    await call("POST", "/v1/chat/completions", chat(tools=[tool, NOW], tool_choice="required", parallel_tool_calls=False))
    structured = dispatcher.generations[0].structured
    assert structured is not None
    schema = json.loads(structured.json_schema or "")
    assert schema["$defs"] == {"Place": {"type": "string"}}
    assert "$defs" not in schema["items"]["anyOf"][0]["properties"]["parameters"]
    assert schema["maxItems"] == 1


BAD_TOOLS = [
    ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools[0].function.name"),
    ({"tools": [NOW, NOW]}, "tools[1].function.name"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [NOW] * 300}, "tools"),
    ({"tools": [NOW], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
    ({"tools": [NOW], "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
    ({"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [NOW]}}}, "tool_choice"),
    ({"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [WEATHER]}}}, "tool_choice"),
    (
        {"messages": [*HI, {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": "{"}}]}]},
        "messages[1].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("fields", "param"), BAD_TOOLS, ids=lambda value: str(value)[-60:])
async def test_wrong_tools_are_named(call: Caller, fields: dict[str, object], param: str) -> None:
    await call("POST", "/v1/chat/completions", chat(**fields))
    assert (call.status, call.error["param"]) == (400, param), call.error


async def test_a_worker_that_can_force_nothing_is_not_asked_to(dispatcher: ScriptedDispatcher, able: ScriptedCatalog) -> None:
    able.assets = dataclasses.replace(able.assets, features=frozenset())
    call = Caller(create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings()))
    await call("POST", "/v1/chat/completions", chat(tools=[NOW], tool_choice="required"))
    assert (call.status, call.error["param"]) == (400, "tool_choice")


@pytest.mark.parametrize("make_tokenizer", [byte_level_tokenizer, sentencepiece_tokenizer])
async def test_a_marker_that_is_a_special_token_is_read_all_the_same(
    dispatcher: ScriptedDispatcher, tmp_path: Path, make_tokenizer: Callable[[], Tokenizer]
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True), AddedToken("</s>", special=True)])
    catalog = ScriptedCatalog(assets_of(tokenizer, tmp_path, "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]"))
    call = Caller(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings()))
    written = '[TOOL_CALLS][{"name": "now", "arguments": {"hell": "hell"}}]</s>'
    dispatcher.script = Script(batches=[[i] for i in tokenizer.encode(written).ids])
    await call("POST", "/v1/chat/completions", chat(tools=[NOW]))
    message = call.json["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == (None, '{"hell": "hell"}')
    assert len(message["tool_calls"][0]["id"]) == 9, "what Mistral's templates take back"


@given(text=texts, fields=st.sampled_from([{"tools": [WEATHER, NOW]}, {"tools": [NOW], "parallel_tool_calls": False}, {}]), data=st.data())
async def test_whatever_a_model_writes_streams_as_it_would_be_answered_whole(
    assets: TextAssets, tokenizer: Tokenizer, text: str, fields: dict[str, object], data: st.DataObject
) -> None:
    catalog = ScriptedCatalog(dataclasses.replace(assets, chat_template=TEMPLATE, features=frozenset(Feature)))
    ids = tokenizer.encode(text).ids
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    batches = [ids[i:j] for i, j in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    call = Caller(create_app(dispatcher=ScriptedDispatcher(Script(batches=batches)), catalog=catalog, settings=SurfaceSettings()))
    await call("POST", "/v1/chat/completions", chat(**fields))
    (whole,) = call.json["choices"]
    call.sent.clear()
    await call("POST", "/v1/chat/completions", chat(**fields, stream=True))
    deltas = [event["choices"][0]["delta"] for event in call.events[:-1]]
    message, parts = whole["message"], [part for delta in deltas for part in delta.get("tool_calls", [])]
    assert "".join(delta.get("content", "") for delta in deltas) == (message["content"] or "")
    assert "".join(delta.get("reasoning", "") for delta in deltas) == (message["reasoning"] or "")
    for index, made in enumerate(message.get("tool_calls", [])):
        own = [part["function"] for part in parts if part["index"] == index]
        assert (own[0]["name"], "".join(part["arguments"] for part in own)) == tuple(made["function"].values())
    assert call.events[-2]["choices"][0]["finish_reason"] == whole["finish_reason"]


# ---------------------------------------------------------------- thinking


def reasoning(message: ChatCompletionMessage) -> object:
    extra = message.model_extra or {}
    assert extra.get("reasoning_content") == extra.get("reasoning")
    return extra.get("reasoning_content")


def test_thinking_is_told_apart_and_counted(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = says(tokenizer, "<think>hello</think> world")
    answer = client.chat.completions.create(model="tiny", messages=HI)
    assert (reasoning(answer.choices[0].message), answer.choices[0].message.content) == ("hello", " world")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(tokenizer.encode("<think>hello</think>").ids)


def test_accepted_and_rejected_guesses_are_told_in_usage_of_all_choices(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, "hello world", drafts=(10, 7), guesses=4, accepted_by_place=(4, 2, 1))
    answer = client.chat.completions.create(model="tiny", messages=HI, n=2)
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (14, 6)
    told = details.model_dump()
    assert (told["predictions"], told["accepted_predictions_by_place"]) == (8, [8, 4, 2])
    dispatcher.script = says(tokenizer, "hello world")
    answer = client.chat.completions.create(model="tiny", messages=HI)
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens is None, "nothing was guessed"


def test_a_template_may_open_the_thinking(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = says(tokenizer, "hello</think> world")
    stream = client.chat.completions.create(
        model="tiny",
        messages=HI,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )
    *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "hello"
    assert "".join((delta.model_extra or {}).get("reasoning", "") for delta in deltas) == "hello"
    assert "".join(delta.content or "" for delta in deltas) == " world"
    assert last.usage is not None
    assert last.usage.completion_tokens_details is not None
    assert last.usage.completion_tokens_details.reasoning_tokens == len(tokenizer.encode("hello</think>").ids)


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("high", True)])
async def test_an_effort_of_none_turns_a_templates_thinking_off(
    dispatcher: ScriptedDispatcher, able: ScriptedCatalog, tokenizer: Tokenizer, effort: str, thinks: bool
) -> None:
    template = able.assets.chat_template or ""
    able.assets = dataclasses.replace(
        able.assets, chat_template=template.replace("{% if enable_thinking %}", "{% if enable_thinking is not false %}")
    )
    call = Caller(create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings()))
    await call("POST", "/v1/chat/completions", chat(reasoning_effort=effort))
    assert prompt_of(dispatcher, tokenizer).endswith("<think>\n") is thinks


def test_thinking_that_nobody_wants_is_dropped_but_counted(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, "<think>hello</think> world")
    answer = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, extra_body={"include_reasoning": False})
    assert (reasoning(answer.choices[0].message), answer.choices[0].message.content) == (None, " world")
    assert answer.choices[0].logprobs is not None
    assert "".join(token.token for token in answer.choices[0].logprobs.content or []) == " world"
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.completion_tokens_details.reasoning_tokens or 0) > 0


async def test_thinking_goes_back_in_and_a_users_tag_opens_nothing(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, "hello")
    messages = [*HI, {"role": "assistant", "content": "a", "reasoning": "b"}, {"role": "user", "content": "what is <think>"}]
    await call("POST", "/v1/chat/completions", chat(messages=messages))
    assert "<think>b</think>a" in prompt_of(dispatcher, tokenizer)
    assert call.json["choices"][0]["message"]["content"] == "hello"


async def test_a_constrained_answer_is_not_taken_for_thinking(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = says(tokenizer, "{}")
    fields = {"response_format": {"type": "json_object"}, "chat_template_kwargs": {"enable_thinking": True}}
    await call("POST", "/v1/chat/completions", chat(**fields))
    assert call.json["choices"][0]["message"]["content"] == "{}"


# ---------------------------------------------------------------- structured output, sampling

SCHEMA = '{"type":"object"}'
FORMS = [
    ({"response_format": {"type": "json_object"}}, Structured(json_object=True)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
        Structured(json_schema=SCHEMA),
    ),
    ({"response_format": {"type": "text"}}, None),
    ({"structured_outputs": {"json": {"type": "object"}}}, Structured(json_schema=SCHEMA)),
    ({"structured_outputs": {"json": SCHEMA, "regex": None}}, Structured(json_schema=SCHEMA)),
    ({"structured_outputs": {"regex": "a+"}}, Structured(regex="a+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, Structured(choices=("a", "b"))),
    ({"structured_outputs": {"grammar": "start: A"}}, Structured(grammar="start: A")),
    ({"structured_outputs": {"json_object": True}}, Structured(json_object=True)),
    ({"guided_json": {"type": "object"}}, Structured(json_schema=SCHEMA)),
    ({"guided_regex": "a+"}, Structured(regex="a+")),
    ({"guided_choice": ["a"]}, Structured(choices=("a",))),
    ({"guided_grammar": "start: A"}, Structured(grammar="start: A")),
    ({"guided_grammar": "", "structured_outputs": {}}, None),
]


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_the_clients_own_models_become_a_schema_and_come_back(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = says(tokenizer, '{"name": "Ada", "age": 36}')
    answer = client.chat.completions.parse(model="tiny", messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    form = dispatcher.generations[0].structured
    assert form is not None
    assert json.loads(form.json_schema or "")["required"] == ["name", "age"]


@pytest.mark.parametrize(("fields", "expected"), FORMS, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_every_spelling_of_a_form_becomes_one(
    call: Caller, dispatcher: ScriptedDispatcher, path: str, fields: dict[str, object], expected: Structured | None
) -> None:
    body = chat(**fields) if "chat" in path else {"model": "tiny", "prompt": "x", **fields}
    await call("POST", path, body)
    assert dispatcher.generations[0].structured == expected


async def test_a_form_that_the_worker_cannot_enforce_is_named_as_it_was_sent(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    refusal = BadRequest("structured.regex cannot be enforced: unclosed (", param="structured.regex")
    dispatcher.script = Script(refusal=refusal)
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": "x", "guided_regex": "("})
    assert (call.error["param"], call.error["message"]) == ("guided_regex", "guided_regex cannot be enforced: unclosed (")


async def asked(call: Caller, dispatcher: ScriptedDispatcher, **fields: object) -> Generation:
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": "hello world", "max_tokens": 4, **fields})
    assert call.status == 200, call.body
    return dispatcher.generations[-1]


async def test_bad_words_are_told_with_and_without_a_space_before(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    sampling = (await asked(call, dispatcher, bad_words=["world"], allowed_token_ids=[7, 5, 7])).sampling
    assert sampling.bad_words == (tuple(tokenizer.encode("world").ids), tuple(tokenizer.encode(" world").ids))
    assert sampling.allowed_token_ids == (7, 5)


@pytest.mark.parametrize(("given", "kept"), [(1, 1), (2, 2), (99, 2), (-1, 2), (None, 2)])
async def test_a_prompt_is_cut_at_its_beginning(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, given: int | None, kept: int
) -> None:
    generation = await asked(call, dispatcher, truncate_prompt_tokens=given, echo=True)
    assert list(generation.prompt_ids) == tokenizer.encode("hello world").ids[-kept:]
    assert call.json["choices"][0]["text"] == ("hello world" if kept == 2 else " world")


async def test_a_prompt_that_is_too_long_fits_when_it_may_be_cut(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    assert len((await asked(call, dispatcher, prompt="hello " * 2000, truncate_prompt_tokens=-1)).prompt_ids) == 512 - 4


async def test_a_smaller_priority_is_served_sooner(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    assert [(await asked(call, dispatcher, priority=value)).priority for value in (None, 3, -2)] == [0, -3, 2]


async def test_token_ids_are_returned_when_asked_for(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello world").ids
    dispatcher.script = says(tokenizer, "hello world")
    await asked(call, dispatcher, return_token_ids=True)
    assert (call.json["choices"][0]["token_ids"], call.json["choices"][0]["prompt_token_ids"]) == (ids, ids)
    for path, body in (("/v1/completions", {"model": "tiny", "prompt": "x"}), ("/v1/chat/completions", chat())):
        call.sent.clear()
        await call("POST", path, {**body, "return_token_ids": True, "stream": True})
        assert [i for event in call.events[:-1] for i in event["choices"][0].get("token_ids", [])] == ids


# ---------------------------------------------------------------- logprobs of the prompt


def test_logprobs_of_the_prompt_have_vllms_shape(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = says(tokenizer, "x")
    hello, world = tokenizer.encode("hello world").ids
    answer = client.completions.create(model="tiny", prompt="hello world", n=2, extra_body={"prompt_logprobs": 1})
    nine = tokenizer.decode([9])
    expected = [
        None,
        {
            "9": {"logprob": -0.25, "rank": 1, "decoded_token": nine},
            str(world): {"logprob": -2.0, "rank": None, "decoded_token": " world"},
        },
    ]
    assert [(choice.model_extra or {})["prompt_logprobs"] for choice in answer.choices] == [expected] * 2
    assert dispatcher.generations[0].prompt_logprobs == 1
    whole = client.chat.completions.create(model="tiny", messages=HI, extra_body={"prompt_logprobs": 2})
    known = (whole.model_extra or {})["prompt_logprobs"]
    assert known[0] is None
    assert [sorted(entry["rank"] for entry in position.values()) for position in known[1:]] == [[1, 2]] * (len(known) - 1)
    assert hello != world


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_with_logprobs_begins_with_the_prompts(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, stream: bool
) -> None:
    dispatcher.script = says(tokenizer, " lazy")
    answer: Any = client.completions.create(model="tiny", prompt="hello world", echo=True, logprobs=1, max_tokens=1, stream=stream)
    logprobs = [chunk.choices[0].logprobs for chunk in (answer if stream else [answer]) if chunk.choices[0].logprobs]
    joined = {name: [value for part in logprobs for value in getattr(part, name)] for name in type(logprobs[0]).model_fields}
    assert joined["tokens"] == ["hello", " world", " lazy"]
    assert joined["token_logprobs"] == [None, -2.0, -0.5]
    assert joined["text_offset"] == [0, 5, 11]
    assert joined["top_logprobs"][0] is None
    assert joined["top_logprobs"][1][" world"] == -2.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("reason", [EndReason.STOP, EndReason.LENGTH])
def test_an_echo_of_no_tokens_is_the_prompt_alone(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, stream: bool, logprobs: int | None, reason: EndReason
) -> None:
    dispatcher.script = says(tokenizer, "x", reason=reason)
    prompts = ["hello world", "lazy"]
    fields: Any = {"model": "tiny", "prompt": prompts, "echo": True, "max_tokens": 0, "n": 2, "logprobs": logprobs, "stop": "hello"}
    answer: Any = client.completions.create(**fields, stream=stream, stream_options={"include_usage": True} if stream else openai.omit)
    chunks: list[Any] = list(answer) if stream else [answer]
    texts, tokens, values, reasons = [""] * 4, [[] for _ in range(4)], [[] for _ in range(4)], [[] for _ in range(4)]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.text
        if choice.logprobs:
            tokens[choice.index] += choice.logprobs.tokens
            values[choice.index] += choice.logprobs.token_logprobs
        reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert texts == ["hello world"] * 2 + ["lazy"] * 2
    assert reasons == [["length"]] * 4
    if logprobs is None:
        assert tokens == [[]] * 4
    else:
        assert (tokens[:2], values[:2]) == ([["hello", " world"]] * 2, [[None, -2.0]] * 2)
    usage = chunks[-1].usage
    expected = sum(len(tokenizer.encode(prompt).ids) for prompt in prompts)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (expected, 0, expected)
    assert {generation.max_tokens for generation in dispatcher.generations} == {1}, "a worker gives logprobs with its first token"


# ---------------------------------------------------------------- embeddings, tokens

VECTOR = [0.5, -0.25, 0.125]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("hello", [["hello"]]),
        (["hello", "lazy dog"], [["hello"], ["lazy dog"]]),
        ([70, 71], [[70, 71]]),
        ([[70], [71, 72]], [[70], [71, 72]]),
    ],
    ids=str,
)
def test_embeddings_of_every_form_of_input(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, given: Any, prompts: list[list[Any]]
) -> None:
    dispatcher.script = Script(embedding=VECTOR)
    ids = [tokenizer.encode(prompt[0]).ids if isinstance(prompt[0], str) else prompt for prompt in prompts]
    answer = client.embeddings.create(model="tiny", input=given, dimensions=3)
    assert [(item.index, item.embedding) for item in answer.data] == [(i, VECTOR) for i in range(len(ids))]
    assert sorted(map(list, (generation.prompt_ids for generation in dispatcher.generations))) == sorted(ids)
    assert all(generation.embedding for generation in dispatcher.generations)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))


def test_an_embeddings_trace_comes_when_it_is_asked_for(client: openai.OpenAI, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(embedding=VECTOR)
    answer = client.embeddings.create(model="tiny", input="hello", extra_headers={"x-pagoda-trace": "1"})
    told = (answer.model_extra or {})["pagoda_trace"]
    assert (told["endpoint"], told["status"], told["tokens"]["prompt"]) == ("embeddings", 200, 1)


async def test_embeddings_as_numbers_and_as_base64(url: str, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(embedding=VECTOR)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        as_numbers = await client.embeddings.create(model="tiny", input="hello", encoding_format="float")
        as_base64 = await client.embeddings.create(model="tiny", input="hello", encoding_format="base64")
    assert as_numbers.data[0].embedding == VECTOR
    assert list(struct.unpack("<3f", base64.b64decode(str(as_base64.data[0].embedding)))) == VECTOR


BAD_EMBEDDINGS = [
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["a", [1]]}, "input"),
    ({"input": [10**6]}, "input"),
    ({"input": "x " * 600}, "input"),
    ({"input": ["x"] * 2000}, "input"),
    ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "x", "normalize": False}, "normalize"),
    ({"input": "x", "embed_dtype": "float16"}, "embed_dtype"),
    ({"input": "x", "messages": HI}, "messages"),
    ({"input": "x", "dimensions": 2}, "dimensions"),
    ({}, "input"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_EMBEDDINGS, ids=lambda value: str(value)[:40])
async def test_wrong_embedding_requests_are_named(
    call: Caller, dispatcher: ScriptedDispatcher, fields: dict[str, object], param: str
) -> None:
    dispatcher.script = Script(embedding=VECTOR)
    await call("POST", "/v1/embeddings", {"model": "tiny", **fields})
    assert (call.status, call.error["param"]) == (400, param), call.error
    assert dispatcher.running == 0


async def test_embeddings_need_workers_that_make_them(dispatcher: ScriptedDispatcher, able: ScriptedCatalog) -> None:
    able.assets = dataclasses.replace(able.assets, features=frozenset())
    call = Caller(create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings()))
    await call("POST", "/v1/embeddings", {"model": "tiny", "input": "x"})
    assert (call.status, call.error["param"]) == (400, "model")
    assert "make no embeddings" in call.error["message"]


async def test_a_worker_lost_under_one_embedding_ends_the_others(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script_of = lambda generation: (
        Script(reason=EndReason.ENGINE_ERROR, detail="gone") if generation.prompt_ids[0] == 70 else Script(embedding=VECTOR)
    )
    await call("POST", "/v1/embeddings", {"model": "tiny", "input": [[70], [71]]})
    assert (call.status, call.error["message"], dispatcher.running) == (502, "gone", 0)


def test_tokens_of_a_prompt_and_of_a_chat_and_back(url: str, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello world").ids
    answer = httpx.post(f"{url}/tokenize", json={"model": "tiny", "prompt": "hello world", "return_token_strs": True})
    assert answer.json() == {"count": 2, "max_model_len": 512, "tokens": ids, "token_strs": ["hello", " world"]}
    with_model = httpx.post(f"{url}/tokenize", json={"model": "tiny", "prompt": "hello world"})
    assert with_model.json()["tokens"] == ids
    answer = httpx.post(f"{url}/tokenize", json={"model": "tiny", "messages": HI, "tools": [NOW]})
    text = httpx.post(f"{url}/detokenize", json={"model": "tiny", "tokens": answer.json()["tokens"]}).json()["prompt"]
    assert text.endswith("<|user|>hi<|end|><|assistant|>")
    assert '"now"' in text
    assert dispatcher.generations == []


def test_a_harness_learns_special_tokens_and_template(url: str, dispatcher: ScriptedDispatcher) -> None:
    told = httpx.get(f"{url}/tokenizer_info", params={"model": "tiny"}).json()
    assert (told["model"], told["eos_token"], told["bos_token"], told["model_max_length"]) == ("tiny", "<|end|>", None, 512)
    assert "<|assistant|>" in told["chat_template"]
    assert httpx.get(f"{url}/tokenizer_info", params={"model": "nobody"}).status_code == 404
    assert dispatcher.generations == []


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": HI}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
    ids=str,
)
async def test_wrong_token_requests_are_named(call: Caller, path: str, fields: dict[str, object], param: str) -> None:
    await call("POST", path, {"model": "tiny", **fields})
    assert (call.status, call.error["param"]) == (400, param), call.error


async def test_a_model_may_be_left_out_where_there_is_one(dispatcher: ScriptedDispatcher, able: ScriptedCatalog) -> None:
    app = create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings())
    call = await Caller(app)("POST", "/tokenize", {"prompt": "x"})
    assert (call.status, call.error["param"], call.error["message"]) == (400, "model", "model is required: 2 are served")
    able.entries = able.entries[:1]
    tokens = (await Caller(app)("POST", "/tokenize", {"prompt": "hello"})).json["tokens"]
    assert (await Caller(app)("POST", "/detokenize", {"tokens": tokens})).json == {"prompt": "hello"}


async def test_tokens_of_a_model_that_nobody_described_wake_nobody(dispatcher: ScriptedDispatcher, able: ScriptedCatalog) -> None:
    able.assets = None  # type: ignore[assignment]
    call = Caller(create_app(dispatcher=dispatcher, catalog=able, settings=SurfaceSettings()))
    await call("POST", "/tokenize", {"model": "tiny", "prompt": "x"})
    assert (call.status, call.error["code"]) == (503, "no_worker")
