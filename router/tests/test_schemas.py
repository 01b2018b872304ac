"""Request bodies: what reaches the engine, and that everything wrong is a 400 that names its field, never a 5xx."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat
from tokenizers import Tokenizer

from pagoda_router.generation import Sampling
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def text(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "prompt": "hi", **fields}


def message(content: object) -> dict[str, object]:
    return chat(messages=[{"role": "user", "content": content}])


WRONG = [
    # path, body, param, part of the message
    (CHAT, b"", None, "is empty"),
    (CHAT, b"{", None, "not valid JSON"),
    (CHAT, b"[]", None, "must be a JSON object"),
    (CHAT, b"null", None, "must be a JSON object"),
    (CHAT, b'"x"', None, "must be a JSON object"),
    (CHAT, b"{} {}", None, "not valid JSON"),
    (CHAT, b'{"model": "\xff", "messages": []}', None, "not valid JSON"),
    (CHAT, b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', None, "not valid JSON"),
    (CHAT, b'{"a": ' + b"[" * 100_000 + b"}", None, "not valid JSON"),
    (CHAT, b'{"tools": ' + b"[" * 100_000 + b"]" * 100_000 + b', "model": "tiny", "messages": []}', None, ""),
    (CHAT, b'{"model": "tiny", "messages": [], "temperature": NaN}', None, "not valid JSON"),
    (CHAT, {}, "model", "required"),
    (CHAT, {"model": "tiny"}, "messages", "required"),
    (CHAT, {"model": 3, "messages": []}, "model", "expected str"),
    (CHAT, chat(messages=[]), "messages", "empty"),
    (CHAT, chat(messages="hi"), "messages", "expected array"),
    (CHAT, chat(messages=[{"content": "hi"}]), "messages[0].role", "required"),
    (CHAT, chat(messages=[{"role": "user"}]), "messages[0].content", "missing"),
    (CHAT, chat(messages=[{"role": "user", "content": None}]), "messages[0].content", "missing"),
    (CHAT, chat(messages=[{"role": "user", "content": 3}]), "messages[0].content", "expected"),
    (CHAT, chat(messages=[{"role": "user", "content": "x"}] * 5000), "messages", "at most 4096"),
    (CHAT, message([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]), "messages", "text parts only"),
    (CHAT, message([{"type": "text"}]), "messages", "text parts only"),
    (CHAT, message(["hi"]), "messages[0].content[0]", "expected object"),
    (CHAT, message("x " * 600), "messages", "This model's maximum context length is 512 tokens"),
    (CHAT, message("x" * 200_000), "messages", "at least"),
    (CHAT, chat(max_tokens=600), "messages", "This model's maximum context length is 512 tokens"),
    (CHAT, chat(max_tokens=600), "messages", "max_tokens is 600"),
    (CHAT, chat(max_completion_tokens=600, max_tokens=1), "messages", "max_completion_tokens is 600"),
    (CHAT, chat(max_tokens=0), "max_tokens", "at least 1"),
    (CHAT, chat(max_tokens=-1), "max_tokens", "at least 1"),
    (TEXT, text(max_tokens=0), "max_tokens", "at least 1 token, or set echo to true"),
    (TEXT, text(max_tokens=-1, echo=True), "max_tokens", "max_tokens is -1: ask for at least 1 token"),
    (TEXT, text(max_tokens=0, echo=True, min_tokens=1), "min_tokens", "from 0 to 0"),
    (CHAT, chat(max_tokens="many"), "max_tokens", "expected int"),
    (CHAT, chat(max_tokens=1.5), "max_tokens", "expected int"),
    (CHAT, chat(max_tokens=10**30), "messages", "max_tokens is 1000"),
    (CHAT, chat(min_tokens=11, max_tokens=10), "min_tokens", "from 0 to 10"),
    (CHAT, chat(temperature=2.5), "temperature", "from 0 to 2"),
    (CHAT, chat(temperature=-0.1), "temperature", "from 0 to 2"),
    (CHAT, chat(temperature="hot"), "temperature", "expected float"),
    (CHAT, chat(temperature=True), "temperature", "expected float"),
    (CHAT, chat(top_p=1.1), "top_p", "from 0 to 1"),
    (CHAT, chat(top_k=-2), "top_k", ""),
    (CHAT, chat(top_k=2**40), "top_k", ""),
    (CHAT, chat(min_p=2), "min_p", ""),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty", ""),
    (CHAT, chat(frequency_penalty=3), "frequency_penalty", "from -2 to 2"),
    (CHAT, chat(presence_penalty=-3), "presence_penalty", "from -2 to 2"),
    (CHAT, chat(seed=2**70), "seed", ""),
    (CHAT, chat(n=0), "n", "from 1 to 8"),
    (CHAT, chat(n=9), "n", "from 1 to 8"),
    (CHAT, chat(n=10**30), "n", "from 1 to 8"),
    (CHAT, chat(stop=[] + ["x"] * 17), "stop", "at most 16"),
    (CHAT, chat(stop=""), "stop", "empty"),
    (CHAT, chat(stop=["a", ""]), "stop", "empty"),
    (CHAT, chat(stop="x" * 2000), "stop", "1024"),
    (CHAT, chat(stop={"a": 1}), "stop", "expected"),
    (CHAT, chat(stop_token_ids=[10**6]), "stop_token_ids", "not a token id"),
    (CHAT, chat(stop_token_ids=[-1]), "stop_token_ids", "not a token id"),
    (CHAT, chat(stop_token_ids=[1] * 100), "stop_token_ids", "at most"),
    (CHAT, chat(logit_bias={"1": 101}), "logit_bias", "from -100 to 100"),
    (CHAT, chat(logit_bias={"x": 1}), "logit_bias", "not a token id"),
    (CHAT, chat(logit_bias={"-1": 1}), "logit_bias", "not a token id"),
    (CHAT, chat(logit_bias={"99999999999999999999": 1}), "logit_bias", "not a token id"),
    (CHAT, chat(logit_bias=[1]), "logit_bias", "expected object"),
    (CHAT, chat(top_logprobs=2), "top_logprobs", "needs logprobs"),
    (CHAT, chat(logprobs=True, top_logprobs=6), "top_logprobs", "from 0 to 5"),
    (CHAT, chat(logprobs=5), "logprobs", "expected bool"),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options", "stream is true"),
    (CHAT, chat(stream="yes"), "stream", "expected bool"),
    (CHAT, chat(continue_final_message=True, add_generation_prompt=True), "continue_final_message", "exclude"),
    (CHAT, chat(continue_final_message=True, messages=[{"role": "user", "content": "  "}]), "continue_final_message", "last message"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tools", "shows the model no tools"),
    (CHAT, chat(tool_choice="required"), "tool_choice", "there are no tools"),
    (CHAT, chat(response_format={"type": "json_object"}), "response_format", "cannot be held to a form"),
    (CHAT, chat(response_format={"type": "xml"}), "response_format.type", "use text, json_object or json_schema"),
    (CHAT, chat(response_format={"type": "json_schema"}), "response_format.json_schema", "is missing"),
    (CHAT, chat(response_format={"type": "json_schema", "json_schema": {"schema": 3}}), "response_format.json_schema.schema", "an object"),
    (CHAT, chat(structured_outputs={"regex": 3}), "structured_outputs.regex", "send a string"),
    (CHAT, chat(structured_outputs={"choice": []}), "structured_outputs.choice", "list of choices"),
    (CHAT, chat(structured_outputs={"choice": ["x"] * 2000}), "structured_outputs.choice", "at most 1024"),
    (CHAT, chat(structured_outputs={"structural_tag": "{}"}), "structured_outputs.structural_tag", "not supported"),
    (CHAT, chat(structured_outputs={"jsom": "{}"}), "structured_outputs", "not known"),
    (CHAT, chat(structured_outputs={"json": "{"}), "structured_outputs.json", "not JSON"),
    (CHAT, chat(guided_regex="a", guided_choice=["b"]), "guided_choice", "send one"),
    (CHAT, chat(modalities=["text", "audio"]), "modalities", "only text"),
    (CHAT, chat(audio={"voice": "x"}), "audio", "only text"),
    (CHAT, chat(guided_json={"a": 1}), "guided_json", "cannot be held to a form"),
    (CHAT, chat(functions=[{"name": "f"}]), "functions", "use tools"),
    (CHAT, chat(prompt_logprobs=0), "prompt_logprobs", "no logprobs of the prompt"),
    (CHAT, chat(prompt_logprobs=6), "prompt_logprobs", "from 0 to 5"),
    (CHAT, chat(prompt_logprobs=1, stream=True), "prompt_logprobs", "cannot be streamed"),
    (CHAT, chat(priority=2**40), "priority", "from -"),
    (CHAT, chat(allowed_token_ids=[]), "allowed_token_ids", "allows no answer"),
    (CHAT, chat(allowed_token_ids=[10**6]), "allowed_token_ids", "not a token id"),
    (CHAT, chat(bad_words=[" "]), "bad_words", "empty word"),
    (CHAT, chat(bad_words=["x"] * 200), "bad_words", "at most 128"),
    (CHAT, chat(bad_words=["x" * 300]), "bad_words", "at most 256"),
    (CHAT, chat(truncate_prompt_tokens=0), "truncate_prompt_tokens", "from 1 to 512"),
    (CHAT, chat(truncate_prompt_tokens=4, truncation_side="right"), "truncation_side", "its beginning"),
    (CHAT, chat(cache_salt="x"), "cache_salt", "by itself"),
    (CHAT, chat(chat_template="{{ 1 }}"), "chat_template", "own template"),
    (CHAT, chat(temprature=0.5), "temprature", "did you mean temperature"),
    (CHAT, chat(maxTokens=5), "maxTokens", "did you mean max_tokens"),
    (CHAT, chat(max_token=5), "max_token", "did you mean max_tokens"),
    (CHAT, chat(**{f"x{i}": 1 for i in range(300)}), None, "at most 256"),
    (CHAT, chat(max_new_tokens=5), "max_new_tokens", "use max_tokens"),
    (CHAT, chat(do_sample=False), "do_sample", "temperature 0"),
    (CHAT, chat(enable_thinking=False), "enable_thinking", "chat_template_kwargs"),
    (CHAT, chat(regex="a+"), "regex", "structured_outputs"),
    (CHAT, chat(max_output_tokens=5), "max_output_tokens", "use max_tokens"),
    (CHAT, chat(instructions="Be brief."), "instructions", "role system"),
    (CHAT, chat(stop_sequences=["x"]), "stop_sequences", "use stop"),
    (CHAT, chat(reasoning={"effort": "low"}), "reasoning", "reasoning_effort"),
    (CHAT, chat(reasoning_effort="hihg"), "reasoning_effort", "'hihg': use none, minimal, low, medium, high, xhigh or max;"),
    (CHAT, chat(repeat_penalty=1.2), "repeat_penalty", "repetition_penalty"),
    (CHAT, {"model": "tiny", "prompt": "x"}, "prompt", "a chat takes messages"),
    (CHAT, {"model": "tiny", "input": "x"}, "input", "a chat takes messages"),
    (CHAT, {"model": "tiny", "mesages": []}, "mesages", "did you mean messages"),
    (CHAT, chat(tools=[{"type": "function", "name": "f"}]), "tools[0].function", '"function": {"name"'),
    (CHAT, chat(tools=[{"type": "custom", "custom": {"name": "f"}}]), "tools[0].function", "only functions"),
    (CHAT, chat(seed=2**64), "seed", f"from {-(2**63)} to {2**64 - 1}"),
    (TEXT, text(max_completion_tokens=5), "max_completion_tokens", "use max_tokens"),
    (TEXT, text(top_logprobs=2), "top_logprobs", "use logprobs"),
    (TEXT, text(messages=[{"role": "user", "content": "x"}]), "messages", "a completion takes prompt"),
    (TEXT, {"model": "tiny"}, "prompt", "required"),
    (TEXT, text(prompt=None), "prompt", "expected"),
    (TEXT, text(prompt=""), "prompt", "empty"),
    (TEXT, text(prompt=[]), "prompt", "empty"),
    (TEXT, text(prompt=[[]]), "prompt", "empty"),
    (TEXT, text(prompt=["a", 1]), "prompt", "mixes"),
    (TEXT, text(prompt=["a", [1]]), "prompt", "mixes"),
    (TEXT, text(prompt=[1, [1]]), "prompt", "mixes"),
    (TEXT, text(prompt=[1.5]), "prompt[0]", "expected"),
    (TEXT, text(prompt=[-1]), "prompt", "not a token id"),
    (TEXT, text(prompt=[10**9]), "prompt", "not a token id"),
    (TEXT, text(prompt=[10**30]), "prompt", "not a token id"),
    (TEXT, text(prompt=[-1, "a"]), "prompt", "mixes texts and token ids"),
    (TEXT, text(prompt=[10**30, [1]]), "prompt", "mixes texts and token ids"),
    (TEXT, text(prompt=[5] * 512), "prompt", "512 tokens"),
    (TEXT, text(prompt=[[5]] * 200, n=8), "n", "at most 1024"),
    (TEXT, text(best_of=4), "best_of", "best_of is 4"),
    (TEXT, text(echo=True, logprobs=1), "echo", "no logprobs of the prompt"),
    (TEXT, text(tools=[{"type": "function"}]), "tools", "/v1/chat/completions"),
    (TEXT, text(guided_regex=3), "guided_regex", "expected"),
    (TEXT, text(logprobs=9), "logprobs", "from 0 to 5"),
    (TEXT, text(suffix="end"), "suffix", "continued"),
]


@pytest.mark.parametrize(("path", "body", "param", "part"), WRONG, ids=lambda value: str(value)[:60])
async def test_a_wrong_field_is_named(call: Caller, path: str, body: object, param: str | None, part: str) -> None:
    await call("POST", path, body)
    assert call.status == 400
    error = call.error
    assert error["type"] == "invalid_request_error"
    if part:
        assert (error["param"], part in error["message"]) == (param, True), error


async def test_a_too_long_prompt_says_both_numbers_in_the_stable_code(call: Caller, tokenizer: Tokenizer) -> None:
    await call("POST", TEXT, text(prompt=[5] * 500, max_tokens=13))
    assert call.error["code"] == "context_length_exceeded"
    for number in ("500", "13", "513", "512"):
        assert number in call.error["message"]


HARMLESS = [
    {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": False},
    {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "functions": None},
    {"stop": None, "seed": None, "temperature": None, "n": None, "max_tokens": None, "stream": None, "stream_options": None, "top_p": None},
    {"stop": [], "prompt_logprobs": None, "best_of": 1, "echo": False, "priority": 0},
    {"a_field_of_next_year": {"deep": [1]}},
    {
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "safety_identifier": "u",
        "prompt_cache_key": "k",
    },
    {"do_sample": True, "typical_p": 1.0, "num_beams": 1, "max_completion_tokens": 5, "service_tier": "flex", "verbosity": "low"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "refusal": "no", "audio": None}]},
    {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, {"role": "user", "content": "why"}]},
]


@pytest.mark.parametrize("fields", HARMLESS, ids=lambda fields: next(iter(fields)))
async def test_what_asks_for_nothing_is_accepted(call: Caller, fields: dict[str, object]) -> None:
    await call("POST", CHAT, chat(**fields))
    assert call.status == 200


async def test_sampling_reaches_the_generation(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "frequency_penalty": 1,
        "presence_penalty": -1,
        "repetition_penalty": 1.2,
        "seed": 42,
    }
    await call(
        "POST",
        CHAT,
        chat(**fields, logit_bias={"5": -100}, stop_token_ids=[9], ignore_eos=True, n=3, max_completion_tokens=20, max_tokens=5),
    )
    (generation,) = dispatcher.generations
    assert generation.sampling == Sampling(**fields, logit_bias={5: -100.0})  # type: ignore[arg-type]
    assert (generation.model, generation.n, generation.max_tokens, generation.explicit_max_tokens) == ("tiny-object", 3, 20, True)
    assert (generation.stop_token_ids, generation.ignore_eos, generation.top_logprobs) == ((9,), True, None)


@pytest.mark.parametrize(
    ("path", "body", "max_tokens", "explicit"),
    [
        (CHAT, chat(), 507, False),
        (TEXT, text(prompt=[5] * 8), 16, False),
        (TEXT, text(prompt=[5] * 505), 7, False),
        (TEXT, text(max_tokens=3), 3, True),
    ],
    ids=["chat: what is left", "text: 16", "text: less is left", "asked"],
)
async def test_the_default_of_max_tokens(
    call: Caller, dispatcher: ScriptedDispatcher, path: str, body: object, max_tokens: int, explicit: bool
) -> None:
    await call("POST", path, body)
    assert (dispatcher.generations[0].max_tokens, dispatcher.generations[0].explicit_max_tokens) == (max_tokens, explicit)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1, 0])
async def test_any_64_bit_seed_is_accepted_and_leaves_room_for_sequence_numbers(
    call: Caller, dispatcher: ScriptedDispatcher, seed: int
) -> None:
    await call("POST", CHAT, chat(seed=seed))
    sent = dispatcher.generations[0].sampling.seed
    assert sent is not None
    assert 0 <= sent < 2**63


async def test_text_parts_are_joined_and_developer_means_system(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]
    await call("POST", CHAT, chat(messages=[{"role": "developer", "content": "the"}, {"role": "user", "content": parts}]))
    assert (
        tokenizer.decode(list(dispatcher.generations[0].prompt_ids), skip_special_tokens=False)
        == "<|system|>the<|end|><|user|>hello\nworld<|end|><|assistant|>"
    )


async def test_a_final_message_can_be_continued(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "quick brown"}]
    await call("POST", CHAT, chat(messages=messages, continue_final_message=True))
    prompt = tokenizer.decode(list(dispatcher.generations[0].prompt_ids), skip_special_tokens=False)
    assert prompt == "<|user|>the<|end|><|assistant|>quick brown"


async def test_without_a_template_the_way_out_is_named(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    catalog.assets = dataclasses.replace(catalog.assets, chat_template=None)
    call = Caller(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings()))
    await call("POST", CHAT, chat())
    assert (call.status, "/v1/completions" in call.error["message"]) == (400, True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "messages", "prompt", "max_tokens", "n", "stop", "temperature", "top_p", "top_k", "logit_bias", "logprobs", "top_logprobs",
    "stream", "stream_options", "seed", "tools", "response_format", "echo", "best_of", "stop_token_ids", "chat_template_kwargs",
    "model", "min_tokens", "tool_choice", "structured_outputs", "guided_json", "guided_choice", "allowed_token_ids", "bad_words",
    "prompt_logprobs", "truncate_prompt_tokens", "priority", "return_token_ids", "parallel_tool_calls", "include_reasoning",
]  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(path=st.sampled_from([CHAT, TEXT]), fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4))
async def test_no_json_body_makes_a_5xx(
    dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, path: str, fields: dict[str, object]
) -> None:
    dispatcher.script = Script(batches=[[70]])
    call = Caller(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings()))
    await call("POST", path, json.dumps({**(chat() if path == CHAT else text()), **fields}).encode())
    assert call.status in (200, 400, 404), call.body


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=st.binary(max_size=60))
async def test_no_bytes_make_a_5xx(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, body: bytes) -> None:
    call = Caller(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings()))
    await call("POST", CHAT, body)
    assert call.status == 400
