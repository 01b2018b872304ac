"""POST /v1/responses: the unmodified `openai` package behind a real socket, what items become, and what is refused by name."""

import json
import time
from collections.abc import Container, Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Address, Caller, Script, ScriptedCatalog, ScriptedDispatcher, assets_of, served
from tokenizers import Tokenizer

from pagoda_router.catalog import TextAssets
from pagoda_router.errors import BadRequest, Overloaded, UpstreamFailed
from pagoda_router.generation import EndReason, Usage
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.keyring import Keyring
from pagoda_router.openai.fields import HARMLESS, REFUSED
from pagoda_router.openai.reply.pieces import CallDelta
from pagoda_router.openai.responses.asking import chat_of
from pagoda_router.openai.responses.form import ResponseFormat
from pagoda_router.openai.responses.items import messages_of
from pagoda_router.openai.responses.request import KNOWN, RESPONSES_HARMLESS, RESPONSES_REFUSED, ResponsesRequest, parse_responses
from pagoda_router.openai.schemas import ChatRequest, CompletionRequest
from pagoda_router.openai.sequence import Delta

HELLO = "hello world 🎉"
THOUGHT = "<think>so</think>"
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
TOOLS: list[Any] = [
    {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}, "strict": True},
    {"type": "function", "name": "sort", "parameters": None},
]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message.get('reasoning_content') or '' }}{{ message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}{{ call['function'] | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{# <think> #}"
)


@pytest.fixture(scope="session")
def thinking(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TextAssets:
    return assets_of(tokenizer, tmp_path_factory.mktemp("thinking"), TEMPLATE)


@pytest.fixture
def url(dispatcher: ScriptedDispatcher, thinking: TextAssets) -> Iterator[Address]:
    app = create_app(
        dispatcher=dispatcher,
        catalog=ScriptedCatalog(thinking),
        settings=SurfaceSettings(),
        keyring=Keyring("secret", None, calendar=time.time),
    )
    with served(app) as base:
        yield base


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def says(dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, text: str, **script: Any) -> None:
    dispatcher.script = Script(batches=[[i] for i in tokenizer.encode(text).ids], cached_tokens=2, **script)


# ---------------------------------------------------------------- through the client


def test_a_response(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    says(dispatcher, tokenizer, HELLO)
    raw = client.responses.with_raw_response.create(
        model="tiny",
        input="hi",
        instructions="be brief",
        temperature=0.5,
        max_output_tokens=50,
        metadata={"run": "7"},
        user="me",
        store=False,
    )
    assert raw.headers["x-request-id"]
    response = raw.parse()
    assert response.output_text == HELLO
    assert (response.status, response.object, response.error, response.incomplete_details) == ("completed", "response", None, None)
    assert response.id.startswith("resp_")
    assert (response.metadata, response.user, response.instructions, response.temperature) == ({"run": "7"}, "me", "be brief", 0.5)
    assert [item.type for item in response.output] == ["message"]
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens) == (2, len(tokenizer.encode(HELLO).ids))
    (generation,) = dispatcher.generations
    assert (generation.max_tokens, generation.sampling.temperature) == (50, 0.5)
    prompt = tokenizer.decode(list(generation.prompt_ids), skip_special_tokens=False)
    assert prompt == "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"


def test_a_stream_is_numbered_events_that_add_up_to_the_response(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    says(dispatcher, tokenizer, THOUGHT + HELLO)
    events = list(client.responses.create(model="tiny", input="hi", stream=True, stream_options={"include_obfuscation": False}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    changes = [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before]
    part = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    assert changes == [
        *("response.created", "response.in_progress"),
        *(*part, "response.reasoning_text.delta", "response.reasoning_text.done", *done),
        *(*part, "response.output_text.delta", "response.output_text.done", *done),
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert text == last.response.output_text == HELLO
    reasoning, message = last.response.output
    assert reasoning.type == "reasoning"
    assert [part.text for part in reasoning.content or []] == ["so"]
    items = [event.item for event in events if event.type == "response.output_item.done"]
    assert items == [reasoning, message]
    assert last.response.usage is not None
    assert last.response.usage.output_tokens_details.reasoning_tokens > 0


def test_the_clients_own_accumulator_follows_text_and_calls(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    says(dispatcher, tokenizer, HELLO + CALL)
    with client.responses.stream(model="tiny", input="add", tools=TOOLS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert json.loads(snapshots[-1]) == {"a": 1}
    message, call = final.output
    assert (message.type, final.output_text) == ("message", HELLO)
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments), call.status) == ("add", {"a": 1}, "completed")


def test_a_tool_is_called_and_its_result_sent_back(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    says(dispatcher, tokenizer, THOUGHT + CALL)
    first = client.responses.create(model="tiny", input="add", tools=TOOLS, parallel_tool_calls=False)
    reasoning, call = first.output
    assert (reasoning.type, call.type) == ("reasoning", "function_call")
    assert call.type == "function_call"
    says(dispatcher, tokenizer, HELLO)
    turns: list[Any] = [{"role": "user", "content": "add"}, *first.output]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "2"})
    assert client.responses.create(model="tiny", input=turns, tools=TOOLS).output_text == HELLO
    prompt = tokenizer.decode(list(dispatcher.generations[-1].prompt_ids), skip_special_tokens=False)
    said = json.dumps({"name": "add", "arguments": {"a": 1}})
    assert prompt.partition("<tool_call>")[2] == f"<|user|>add<|end|><|assistant|>so{said}<|end|><|tool|>2<|end|><|assistant|>"


def test_what_the_limit_ends_is_incomplete(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    says(dispatcher, tokenizer, HELLO, reason=EndReason.LENGTH)
    whole = client.responses.create(model="tiny", input="hi", max_output_tokens=9)
    *_, last = client.responses.create(model="tiny", input="hi", max_output_tokens=9, stream=True)
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert (response.status, response.output[-1].status) == ("incomplete", "incomplete")  # type: ignore[union-attr]
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"


def test_logprobs_come_when_they_are_included(client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    says(dispatcher, tokenizer, HELLO)
    response = client.responses.create(model="tiny", input="hi", include=["message.output_text.logprobs"], top_logprobs=2)
    events = list(client.responses.create(model="tiny", input="hi", include=["message.output_text.logprobs"], stream=True))
    (message,) = response.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == HELLO
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)
    streamed = [token.token for event in events if event.type == "response.output_text.delta" for token in event.logprobs]
    assert streamed == [token.token for token in part.logprobs]


def test_a_stream_that_breaks_ends_with_a_failed_response(
    client: openai.OpenAI, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    says(dispatcher, tokenizer, HELLO, reason=EndReason.ENGINE_ERROR, detail="the engine died")
    *_, last = client.responses.create(model="tiny", input="hi", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"
    assert "the engine died" in last.response.error.message
    assert last.response.output_text.startswith("hello")


def test_errors_before_the_first_token_have_their_status(client: openai.OpenAI, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(refusal=Overloaded("full", retry_after_s=2.0))
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="tiny", input="hi", stream=True)
    with pytest.raises(openai.NotFoundError, match="not kept"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="/tokenize counts"):
        client.responses.input_tokens.count(model="tiny", input="hi")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").responses.create(model="tiny", input="hi")


class Told:
    """What a format asks of a progress and of a job."""

    usage = Usage(3, 0, 5)
    answer_id = "resp_1"
    created = 1
    text = None


@st.composite
def replies(draw: st.DrawFn) -> list[Delta]:
    """Deltas as a choice gives them: thinking first, then text and calls in any order, cut anywhere."""
    text = st.text(alphabet="ab 🎉", min_size=1, max_size=5)
    deltas = [Delta(0, reasoning=draw(text)) for _ in range(draw(st.integers(0, 2)))]
    calls = 0
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            deltas.append(Delta(0, text=draw(text)))
        else:
            opened = CallDelta(calls, draw(st.sampled_from(["", "{"])), f"call_{calls}", "add")
            more = [CallDelta(calls, draw(text)) for _ in range(draw(st.integers(0, 2)))]
            calls += 1
            deltas += [Delta(0, calls=[opened]), *(Delta(0, calls=[part]) for part in more)]
    return [*deltas, Delta(0, finish_reason=draw(st.sampled_from(["stop", "length", "tool_calls"])))]


@given(replies(), st.booleans())
def test_every_stream_opens_fills_and_closes_each_item_once(deltas: list[Delta], breaks: bool) -> None:
    form = ResponseFormat(ResponsesRequest(model="tiny", input="hi"), "resp_1", 1, None)
    wire = form.opening() + b"".join(form.chunk(delta, None) for delta in (deltas[:-1] if breaks else deltas))
    wire += form.failed(UpstreamFailed("gone")) if breaks else form.closing(Told(), None)  # type: ignore[arg-type]
    events = [json.loads(block.partition("\ndata: ")[2]) for block in wire.decode().strip().split("\n\n")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    opened: dict[int, dict[str, Any]] = {}
    filled: dict[int, str] = {}
    done: list[dict[str, Any]] = []
    for event in events:
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(opened) == len(done), "one at a time, in order"
                opened[event["output_index"]] = event["item"]
            case "output_text.delta" | "reasoning_text.delta" | "function_call_arguments.delta":
                assert event["item_id"] == opened[event["output_index"]]["id"]
                filled[event["output_index"]] = filled.get(event["output_index"], "") + event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == filled.get(event["output_index"], "")
            case "function_call_arguments.done":
                assert event["arguments"] == filled.get(event["output_index"], "")
            case "output_item.done":
                done.append(event["item"])
    last = events[-1]
    assert last["response"]["output"] == done
    assert len(opened) == len(done)
    if breaks:
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    else:
        assert last["type"] == ("response.incomplete" if deltas[-1].finish_reason == "length" else "response.completed")
        assert done, "an empty answer is an empty message"


# ---------------------------------------------------------------- what is asked


BASE = {"model": "tiny", "input": "hi"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "messages"),
    ({"n": 2}, "n"),
    ({"max_output_token": 5}, "max_output_token"),
    ({"reasoning": {"effort": "hihg"}}, "reasoning.effort"),
    ({"include": ["file_search_call.results"]}, "include"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [TOOLS[0]], "tool_choice": {"type": "function", "name": "nope"}}, "tool_choice"),
    ({"tools": [TOOLS[0]], "tool_choice": {"type": "file_search"}}, "tool_choice"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
        "tool_choice",
    ),
    ({"temperature": 9}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"max_new_tokens": 5}, "max_new_tokens"),
    ({"guided_regex": "a+"}, "guided_regex"),
    ({"stop_token_ids": [5]}, "stop_token_ids"),
    ({"tools": [{"type": "function", "function": {"name": "add"}}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "add", "parameters": 3}]}, "tools[0].parameters"),
    ({"input": []}, "input"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "2"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "add", "arguments": "{"}]}, "input[0].arguments"),
    ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[param for _, param in WRONG])
async def test_what_is_not_to_be_had_is_refused_naming_the_field(
    dispatcher: ScriptedDispatcher, thinking: TextAssets, fields: dict[str, Any], param: str
) -> None:
    app = create_app(dispatcher=dispatcher, catalog=ScriptedCatalog(thinking), settings=SurfaceSettings())
    call = await Caller(app)("POST", "/v1/responses", {**BASE, **fields})
    assert (call.status, call.error["param"]) == (400, param)
    assert "messages" not in call.error["message"] or param == "messages"
    assert not dispatcher.generations


READERS: dict[str, tuple[frozenset[str], Container[str]]] = {
    # endpoint: what it reads, what else it has an opinion on
    "chat": (frozenset(ChatRequest.__struct_fields__), {*HARMLESS, *REFUSED}),
    "completion": (frozenset(CompletionRequest.__struct_fields__), {*HARMLESS, *REFUSED}),
    "response": (KNOWN, {*RESPONSES_HARMLESS, *RESPONSES_REFUSED}),
}


@pytest.mark.parametrize("endpoint", READERS)
def test_what_one_endpoint_reads_is_not_ignored_unsaid_by_another(endpoint: str) -> None:
    read, judged = READERS[endpoint]
    elsewhere = frozenset[str]().union(*(others for others, _ in READERS.values()))
    assert {name for name in elsewhere - read if name not in judged} == set()


@pytest.mark.parametrize(("name", "allowed"), [(name, allowed) for name, (_, values) in RESPONSES_REFUSED.items() for allowed in values])
def test_a_value_that_asks_for_nothing_is_accepted(name: str, allowed: object) -> None:
    parse_responses(json.dumps({**BASE, name: allowed}).encode())


def test_items_of_one_turn_become_one_message() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait", "annotations": []}]},
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {"role": "assistant", "content": "done"},
    ]
    messages = messages_of("rules", items)
    assert [message.role for message in messages] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    turn = messages[2]
    assert (turn.content, turn.reasoning_content, [said.id for said in turn.tool_calls or []]) == ("wait", "hm", ["c1", "c2"])
    assert (messages[1].content, messages[3].tool_call_id, messages[3].content) == ("a\nb", "c2", "2")
    assert messages[5].tool_calls is None


def test_allowed_tools_and_forms_reach_the_chat() -> None:
    form = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    request = parse_responses(json.dumps({**BASE, "text": {"format": form, "verbosity": "low"}, "reasoning": {"effort": "low"}}).encode())
    chat = chat_of(request)
    assert chat.response_format == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert (chat.reasoning_effort, chat.logprobs) == ("low", False)
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "sort"}]}
    asked = chat_of(ResponsesRequest(model="tiny", input="hi", tools=TOOLS, tool_choice=allowed))
    assert [tool.function.name for tool in asked.tools or []] == ["add", "sort"]
    assert asked.tool_choice == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"function": allowed["tools"][0]}]},
    }


def test_a_wrong_role_names_the_ones_there_are() -> None:
    with pytest.raises(BadRequest, match="use user, assistant, system, developer"):
        messages_of(None, [{"role": "robot", "content": "x"}])
