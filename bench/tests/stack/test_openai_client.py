"""The unmodified `openai` package against the running quickstart: what our users' programs do."""

import asyncio

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
