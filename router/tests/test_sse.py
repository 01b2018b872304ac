"""The bytes of a stream: order of chunks, what leaves together, what text is held back, how it ends."""

import asyncio

import pytest
from scripted import Caller, Script, ScriptedDispatcher, chat
from tokenizers import Tokenizer

from pagoda_router.generation import EndReason


def ids(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """One batch per token."""
    return [[i] for i in tokenizer.encode(text, add_special_tokens=False).ids]


def content(events: list[object], index: int = 0) -> str:
    choices = [choice for event in events if isinstance(event, dict) for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


async def test_a_chat_stream_is_role_then_content_then_finish_then_done(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world"))
    await call("POST", "/v1/chat/completions", chat(stream=True))
    assert call.status == 200
    assert call.headers["content-type"].startswith("text/event-stream")
    assert call.headers["cache-control"] == "no-cache"
    assert call.headers["x-accel-buffering"] == "no"
    *chunks, done = call.events
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "hello"},
        {"content": " world"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert b"\nid:" not in call.body


async def test_usage_comes_last_with_no_choices_and_is_null_before(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world"), cached_tokens=4)
    await call("POST", "/v1/chat/completions", chat(stream=True, n=2, stream_options={"include_usage": True}))
    *chunks, usage, done = call.events
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}


async def test_continuous_usage_counts_up_with_each_chunk(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world"))
    options = {"include_usage": True, "continuous_usage_stats": True}
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": "x", "stream": True, "stream_options": options})
    assert [event["usage"]["completion_tokens"] for event in call.events[:-1]] == [1, 2, 2, 2]


async def test_what_arrives_together_leaves_together_and_the_first_token_at_once(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    rest = asyncio.Event()
    hello, world = ids(tokenizer, "hello world")
    dispatcher.script = Script(batches=[hello, world], pause_before={1: rest})
    request = asyncio.create_task(call("POST", "/v1/chat/completions", chat(stream=True, n=3)))
    while len(call.sent) < 2:
        call.got.clear()
        await call.got.wait()
    # Headers, then one message with three roles and three first tokens, while the second token is still to come.
    assert [message["type"] for message in call.sent] == ["http.response.start", "http.response.body"]
    assert call.sent[1]["body"].count(b"data: ") == 6
    rest.set()
    await request
    assert len(call.sent) == 4
    assert call.sent[3]["body"].endswith(b"data: [DONE]\n\n")


async def test_choices_interleave_under_their_indexes(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world"))
    await call("POST", "/v1/chat/completions", chat(stream=True, n=2))
    indexes = [event["choices"][0]["index"] for event in call.events[:-1]]
    assert indexes == [0, 1] * 4
    assert content(call.events, 0) == content(call.events, 1) == "hello world"


async def test_batched_prompts_have_their_own_indexes(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    texts = {"a": "hello", "b": "lazy dog", "c": "fox"}
    by_prompt = {tuple(tokenizer.encode(prompt).ids): text for prompt, text in texts.items()}
    dispatcher.script_of = lambda generation: Script(batches=ids(tokenizer, by_prompt[tuple(generation.prompt_ids)]))
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": list(texts), "n": 2, "stream": True})
    assert [content(call.events, index) for index in range(6)] == ["hello", "hello", "lazy dog", "lazy dog", "fox", "fox"]
    assert call.events[-1] == "[DONE]"


@pytest.mark.parametrize("text", ["größer 🎉🎉 你好", "\U0001f469\u200d\U0001f680"])
async def test_characters_split_over_tokens_never_show_broken(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, text: str
) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, text))
    await call("POST", "/v1/chat/completions", chat(stream=True))
    assert content(call.events) == text
    assert b"\\ufffd" not in call.body
    assert "\ufffd" not in call.body.decode()


async def test_a_character_cut_by_max_tokens_is_left_out(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "ok☃")[:-1], reason=EndReason.LENGTH)
    await call("POST", "/v1/chat/completions", chat(stream=True))
    assert content(call.events) == "ok"
    assert call.events[-2]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_string_across_tokens_ends_the_choice_and_the_work(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer, stream: bool
) -> None:
    never = asyncio.Event()
    batches = ids(tokenizer, "the quick brown fox")
    dispatcher.script = Script(batches=[*batches, [70]], pause_before={len(batches): never}, cached_tokens=1)
    body = chat(stream=stream, stop=["k brown", "zzz"], **({"stream_options": {"include_usage": True}} if stream else {}))
    await call("POST", "/v1/chat/completions", body)
    tokens_to_match = next(i for i in range(1, 99) if "k brown" in tokenizer.decode([b[0] for b in batches[:i]]))
    if stream:
        assert content(call.events) == "the quic"
        assert call.events[-3]["choices"][0]["finish_reason"] == "stop"
        usage = call.events[-2]["usage"]
    else:
        assert call.json["choices"][0]["message"]["content"] == "the quic"
        assert call.json["choices"][0]["finish_reason"] == "stop"
        usage = call.json["usage"]
    assert (usage["completion_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (tokens_to_match, 1)
    assert dispatcher.streams[0].stopped == [0]
    assert dispatcher.running == 0


async def test_a_stop_string_inside_one_batch_is_billed_to_its_last_token(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    together = [i for batch in ids(tokenizer, "hello world the lazy dog") for i in batch]
    dispatcher.script = Script(batches=[together])
    await call("POST", "/v1/chat/completions", chat(stop=" world"))
    assert call.json["choices"][0]["message"]["content"] == "hello"
    assert call.json["usage"]["completion_tokens"] == 2


async def test_what_arrives_behind_a_stop_string_is_ignored(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world the lazy dog"), together=True)
    await call("POST", "/v1/chat/completions", chat(stop=" world", stream=True, n=2))
    assert content(call.events, 0) == content(call.events, 1) == "hello"
    assert [event["choices"][0]["finish_reason"] for event in call.events[:-1]].count("stop") == 2
    assert len(call.sent) == 2
    assert dispatcher.streams[0].stopped == [0, 1]


async def test_a_stop_token_shows_only_when_stops_are_to_be_included(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    (world,) = tokenizer.encode(" world").ids
    dispatcher.script = Script(batches=ids(tokenizer, "hello"), stop_token_id=world)
    for include, text in ((False, "hello"), (True, "hello world")):
        call.sent.clear()
        await call("POST", "/v1/chat/completions", chat(stop_token_ids=[world], include_stop_str_in_output=include))
        assert call.json["choices"][0]["message"]["content"] == text


async def test_text_held_for_a_stop_string_that_never_came_is_sent_at_the_end(
    call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer
) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello wor"))
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": "x", "stream": True, "stop": " world"})
    assert content(call.events) == "hello wor"


async def test_stop_strings_wait_for_min_tokens(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world hello world"))
    await call("POST", "/v1/chat/completions", chat(stop="hello", min_tokens=2))
    assert call.json["choices"][0]["message"]["content"] == "hello world "
    assert dispatcher.generations[0].min_tokens == 2


async def test_include_stop_str_in_output_keeps_it(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world"))
    await call("POST", "/v1/chat/completions", chat(stop=["wor"], include_stop_str_in_output=True))
    assert call.json["choices"][0]["message"]["content"] == "hello wor"


async def test_logprobs_travel_with_their_text(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello ☃"))
    await call("POST", "/v1/chat/completions", chat(stream=True, logprobs=True, top_logprobs=2))
    entries = [e for event in call.events[:-1] for e in (event["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == "hello ☃"
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] == -0.5 for entry in entries)
    assert "\ufffd" not in call.body.decode()


async def test_logprobs_of_a_completion_know_their_offsets(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, "hello world the lazy"))
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": "x", "logprobs": 2, "stop": "the lazy"})
    choice = call.json["choices"][0]
    assert choice["text"] == "hello world "
    logprobs = choice["logprobs"]
    # " the" begins before the stop string does: it was said in part. " lazy" was never said.
    assert logprobs["tokens"] == ["hello", " world", " the"]
    assert logprobs["text_offset"] == [0, 5, 11]
    assert [set(top) >= {token} for top, token in zip(logprobs["top_logprobs"], logprobs["tokens"], strict=True)] == [True] * 3
    assert logprobs["token_logprobs"] == [-0.5] * 3


async def test_echo_puts_the_prompt_before_each_choice(call: Caller, dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> None:
    dispatcher.script = Script(batches=ids(tokenizer, " world"))
    body = {"model": "tiny", "prompt": [tokenizer.encode("hello").ids, tokenizer.encode("lazy").ids], "echo": True}
    await call("POST", "/v1/completions", body)
    assert [choice["text"] for choice in call.json["choices"]] == ["hello world", "lazy world"]
