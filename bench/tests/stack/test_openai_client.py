"""The unmodified `openai` package against the running quickstart: what our users' programs do."""

import asyncio
import json

import httpx
import openai
import pytest

from pagoda_bench.local_stack import LocalStack

MODEL = "tiny"


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def sum_prompt(a: int, b: int) -> str:
    return f"What is {a} + {b}?"


def test_a_sum_is_answered_correctly(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ask(sum_prompt(27, 46)), temperature=0)
    assert "73" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streaming_deltas_reassemble_to_the_answer_without_streaming(client: openai.OpenAI) -> None:
    question = ask("Sort these numbers: 31, 7, 88, 19")
    whole = client.chat.completions.create(model=MODEL, messages=question, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=question, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    text, finish, usage = "", None, None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert "7, 19, 31, 88" in text
    assert finish == "stop"
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_the_second_turn_remembers_the_first(client: openai.OpenAI) -> None:
    turns = ask("My cat is called Milo.")
    first = client.chat.completions.create(model=MODEL, messages=turns, temperature=0)
    turns += [{"role": "assistant", "content": first.choices[0].message.content or ""}, *ask("What is my cat called?")]
    second = client.chat.completions.create(model=MODEL, messages=turns, temperature=0)
    assert "Milo" in (second.choices[0].message.content or "")


async def test_the_async_client_streams_many_answers_at_once_and_each_is_right(stack: LocalStack) -> None:
    sums = [(11 + 7 * i, 90 - 2 * i) for i in range(32)]

    async def one(client: openai.AsyncOpenAI, a: int, b: int) -> tuple[str, str | None]:
        stream = await client.chat.completions.create(model=MODEL, messages=ask(sum_prompt(a, b)), temperature=0, stream=True)
        text, finish = "", None
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        return text, finish

    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        answers = await asyncio.gather(*(one(client, a, b) for a, b in sums))
    assert [finish for _, finish in answers] == ["stop"] * len(sums)
    wrong = [(a, b, text) for (a, b), (text, _) in zip(sums, answers, strict=True) if str(a + b) not in text]
    assert len(wrong) <= 1, wrong  # the model, not the server, may miss one


def test_the_same_prompt_gives_the_same_tokens_alone_and_in_company(client: openai.OpenAI) -> None:
    alone = client.completions.create(model=MODEL, prompt="The cat", max_tokens=24, temperature=0)
    together = client.completions.create(model=MODEL, prompt=["The cat", "Sort", "{", "The cat"], max_tokens=24, temperature=0, n=1)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert together.choices[0].text == together.choices[3].text == alone.choices[0].text


def test_a_seed_repeats_sampling_and_n_gives_as_many_choices(client: openai.OpenAI) -> None:
    def sample() -> list[str]:
        answer = client.completions.create(model=MODEL, prompt="My", max_tokens=12, temperature=1.0, seed=7, n=3)
        return [choice.text for choice in answer.choices]

    first = sample()
    assert first == sample()
    assert len(set(first)) > 1


def test_logprobs_come_with_their_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ask(sum_prompt(2, 3)), temperature=0, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    assert "".join(token.token for token in content).startswith(answer.choices[0].message.content or "?")


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ask("Sort these numbers: 31, 7, 88, 19"), temperature=0, stop=["31"])
    text = answer.choices[0].message.content or ""
    assert "31" not in text
    assert "19" in text
    assert answer.choices[0].finish_reason == "stop"


def test_a_repeated_prompt_counts_cached_tokens(client: openai.OpenAI) -> None:
    prompt = "copy " * 60
    for _ in range(2):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) >= 16


def test_the_model_list_names_what_is_served(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_an_unknown_model_is_a_404_that_names_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        client.chat.completions.create(model="gpt-4", messages=ask("hi"))
    assert caught.value.code == "model_not_found"


def test_a_prompt_over_the_context_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[65] * 5000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert "5000" in str(caught.value)
    assert "2048" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/v1/chat/completions", b"{not json", 400, None),
        ("POST", "/v1/chat/completions", b'{"model":"tiny","messages":"hi"}', 400, "messages"),
        (
            "POST",
            "/v1/chat/completions",
            b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],"temperature":9}',
            400,
            "temperature",
        ),
        ("GET", "/v1/chat/completions", None, 405, None),
        ("GET", "/v1/nothing", None, 404, None),
        ("POST", "/v1/completions", b" " * (11 << 20), 413, None),
    ],
    ids=["bad JSON", "wrong type", "out of range", "wrong method", "unknown route", "huge body"],
)
def test_bad_requests_get_openai_shaped_errors(
    stack: LocalStack, method: str, path: str, body: bytes | None, status: int, param: str | None
) -> None:
    answer = httpx.request(method, stack.url + path, content=body, headers={"content-type": "application/json"}, timeout=30)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert error["param"] == param
    assert answer.headers["x-request-id"]


# ---------------------------------------------------------------- responses


def test_a_response_is_the_chats_answer_streamed_or_not(client: openai.OpenAI) -> None:
    question = "Sort these numbers: 31, 7, 88, 19"
    chat = client.chat.completions.create(model=MODEL, messages=ask(question), temperature=0)
    whole = client.responses.create(model=MODEL, input=question, temperature=0)
    with client.responses.stream(model=MODEL, input=question, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert whole.output_text == final.output_text == "".join(pieces) == chat.choices[0].message.content
    assert (whole.status, final.status) == ("completed", "completed")
    assert whole.usage is not None
    assert chat.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)


def test_a_response_in_a_form_is_of_that_form(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}},
        "required": ["name"],
        "additionalProperties": False,
    }
    answer = client.responses.create(
        model=MODEL,
        input="Give me a name.",
        temperature=0,
        max_output_tokens=100,
        text={"format": {"type": "json_schema", "name": "named", "schema": schema, "strict": True}},
    )
    assert list(json.loads(answer.output_text)) == ["name"]


def test_a_response_at_its_limit_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=ask("Sort these numbers: 31, 7, 88, 19"), temperature=0, max_output_tokens=2)  # type: ignore[arg-type]
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


# ---------------------------------------------------------------- switches


async def test_with_batching_off_a_request_shares_no_step_and_says_the_same(stack: LocalStack) -> None:
    question = ask("Sort these numbers: 31, 7, 88, 19")
    off = {"x-pagoda-features": "batching=off", "x-pagoda-trace": "1"}

    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:

        async def one(headers: dict[str, str]) -> tuple[str, list[int], str]:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL,
                messages=question,  # type: ignore[arg-type]
                temperature=0,
                extra_headers=headers,
            )
            answer = raw.parse()
            sizes = [size for size, _ in answer.pagoda_trace["worker"]["batch_sizes"]]  # type: ignore[attr-defined]
            return answer.choices[0].message.content or "", sizes, raw.headers.get("x-pagoda-features", "")

        answers = await asyncio.gather(*(one(off if i % 2 else {"x-pagoda-trace": "1"}) for i in range(8)))
    assert len({text for text, _, _ in answers}) == 1
    assert all(set(sizes) == {1} for _, sizes, _ in answers[1::2])
    assert max(size for _, sizes, _ in answers[::2] for size in sizes) > 1, "the others go on together"
    applied = "variant=default, quantization=none, prefix-cache=on, batching=off, speculation=off"
    assert [told for _, _, told in answers] == ["", applied] * 4


def test_with_the_prefix_cache_off_nothing_is_found_nor_left(client: openai.OpenAI) -> None:
    prompt = "remember " * 60

    def cached(features: str) -> int:
        answer = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=1, temperature=0, extra_headers={"x-pagoda-features": features}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached("prefix-cache=off") == 0
    assert cached("prefix-cache=on") == 0, "the first left nothing"
    assert cached("prefix-cache=off") == 0
    assert cached("prefix-cache=on") >= 16
