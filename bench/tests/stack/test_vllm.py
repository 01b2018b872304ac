"""A real vLLM as a worker, beside one of ours, through `pagoda up` and the official client. Two minutes; `make test-vllm` runs it."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from pagoda_bench.local_stack import LocalStack, local_stack

TINY = Path(__file__).parents[3] / "worker/src/pagoda_worker/builtin/tiny"
QUESTION = [{"role": "user", "content": "What is 27 + 46?"}]
VLLM = {"X-Backend": "vllm"}
ENV = {"PAGODA_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

pytestmark = [
    pytest.mark.skipif(
        "PAGODA_VLLM" not in os.environ, reason="PAGODA_VLLM names no vllm program: `make test-vllm` installs one and runs this"
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    engine = {"backend": "vllm", "image": "vllm/vllm-openai:v0.32.0", "dtype": "bf16", "maxModelLen": 2048, "args": ["--enforce-eager"]}
    spec = {
        "model": {"source": f"file://{TINY}"},
        "variants": [{"name": "own", "weight": 100}, {"name": "vllm", "weight": 0, "engine": engine}],
    }
    with local_stack(written(tmp_path_factory.mktemp("vllm"), "chat", spec), extra_env=ENV, timeout_s=500) as running:
        yield running


def written(folder: Path, name: str, spec: dict[str, object]) -> Path:
    manifest = folder / f"{name}.json"
    manifest.write_text(
        json.dumps({"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": {"name": name}, "spec": spec})
    )
    return manifest


@pytest.fixture
def client(stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def vllm_metric(stack: LocalStack, name: str) -> float:
    fleet = json.loads((stack.home / "fleet.json").read_text())
    ports = [port["port"] for each in fleet["endpointSlices"] for port in each["ports"] if port["name"] == "openai"]
    page = httpx.get(f"http://127.0.0.1:{ports[0]}/metrics", timeout=10).text
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name}{{"))


def wait_until_idle(stack: LocalStack, was: float) -> float:
    """Tokens that vLLM generated in all, once nothing runs there and its counter stands still."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        before = vllm_metric(stack, "vllm:generation_tokens_total")
        time.sleep(1)  # its counters move with its steps: a second without one means that nothing runs
        if before > was and before == vllm_metric(stack, "vllm:generation_tokens_total"):
            return before
    raise AssertionError("vLLM goes on generating")


@pytest.mark.parametrize("backend", ["vllm", "pagoda"])
def test_both_backends_answer_the_same_question_alike(client: openai.OpenAI, backend: str) -> None:
    header = {"X-Backend": backend}
    whole = client.chat.completions.create(model="chat", messages=QUESTION, temperature=0, max_tokens=40, extra_headers=header)
    assert whole.model == "chat"
    assert "73" in (whole.choices[0].message.content or "")
    assert whole.usage is not None
    stream = client.chat.completions.create(
        model="chat", messages=QUESTION, temperature=0, max_tokens=40, stream=True, extra_headers=header
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_to_a_stream_that_asked_for_it(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(
        model="chat", messages=QUESTION, temperature=0, max_tokens=40, stream=True, stream_options=options, extra_headers=VLLM
    )
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 10


def test_vllms_own_fields_and_its_complaints_pass(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chat", prompt="a", max_tokens=4, extra_body={"ignore_eos": True}, extra_headers=VLLM)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=QUESTION, max_tokens=4000, extra_headers=VLLM)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="chat", messages=QUESTION, temperature=-3, extra_headers=VLLM)


def test_a_form_in_the_older_spelling_holds(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chat", messages=QUESTION, max_tokens=20, extra_body={"guided_regex": "[0-9]{3}"}, extra_headers=VLLM
    )
    assert re.fullmatch("[0-9]{3}", answer.choices[0].message.content or "")
    with pytest.raises(openai.BadRequestError, match="best_of"):
        client.completions.create(model="chat", prompt="a", best_of=2, extra_headers=VLLM)


def test_what_was_cached_of_a_prompt_is_told(client: openai.OpenAI) -> None:
    prompt = "The sum of two numbers is another number. " * 10
    for _ in range(2):
        answer = client.completions.create(model="chat", prompt=prompt, max_tokens=4, extra_headers=VLLM)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 16


def test_a_response_is_made_of_vllms_chat(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="chat", input="What is 27 + 46?", temperature=0, extra_headers=VLLM)
    assert (whole.status, whole.model) == ("completed", "chat")
    assert "73" in whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens > 10
    with client.responses.stream(model="chat", input="What is 27 + 46?", temperature=0, extra_headers=VLLM) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert deltas == stream.get_final_response().output_text == whole.output_text
    cut = client.responses.create(model="chat", input="What is 27 + 46?", max_output_tokens=5, extra_headers=VLLM)
    assert cut.status == "incomplete"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="chat", input="a b c " * 2000, extra_headers=VLLM)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("said", [{"prompt": "What is 27 + 46?"}, {"messages": QUESTION}])
def test_vllm_and_our_own_worker_make_the_same_tokens_of_a_text(stack: LocalStack, said: dict[str, object]) -> None:
    own, vllms = (
        httpx.post(f"{stack.url}/tokenize", json=said | {"model": "chat"}, headers={"X-Backend": backend}, timeout=60).json()
        for backend in ("pagoda", "vllm")
    )
    assert vllms == own
    body = {"model": "chat", "tokens": own["tokens"]}
    texts = [httpx.post(f"{stack.url}/detokenize", json=body, headers=header, timeout=60).json()["prompt"] for header in ({}, VLLM)]
    assert texts[0] == texts[1]
    assert "What is 27 + 46?" in texts[0]


def test_a_vllm_that_generates_is_said_to_make_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="chat makes no embeddings: its vllm worker runs a model that generates text"):
        client.embeddings.create(model="chat", input="a", extra_headers=VLLM)


def test_a_vllm_that_embeds_does_it_through_the_router(tmp_path: Path) -> None:
    """Normalized states of the model's last token, as our own worker makes them of the same weights."""
    engine = {"backend": "vllm", "image": "vllm/vllm-openai:v0.32.0", "dtype": "fp32", "maxModelLen": 2048}
    spec = {
        "model": {"source": f"file://{TINY}"},
        "engine": {"dtype": "fp32"},
        "variants": [
            {"name": "own", "weight": 0},
            {"name": "vllm", "weight": 100, "engine": engine | {"args": ["--enforce-eager", "--runner", "pooling"]}},
        ],
    }
    texts = ["What is 27 + 46?", "a b c"]
    with (
        local_stack(written(tmp_path, "vectors", spec), extra_env=ENV, timeout_s=500) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60) as client,
    ):
        own, vllms = (
            client.embeddings.create(model="vectors", input=texts, extra_headers={"X-Backend": backend}) for backend in ("pagoda", "vllm")
        )
        assert vllms.model == "vectors"
        assert vllms.usage.prompt_tokens == own.usage.prompt_tokens
        for ours, theirs in zip(own.data, vllms.data, strict=True):
            assert sum(a * b for a, b in zip(ours.embedding, theirs.embedding, strict=True)) > 0.999
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model="vectors", input="a b c " * 2000, extra_headers=VLLM)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="vectors generates no text"):
            client.chat.completions.create(model="vectors", messages=QUESTION, stream=True, extra_headers=VLLM)


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_stops_vllm(stack: LocalStack, client: openai.OpenAI, streams: bool) -> None:
    before = vllm_metric(stack, "vllm:generation_tokens_total")
    body = {"ignore_eos": True}
    if streams:
        stream = client.completions.create(model="chat", prompt="a", max_tokens=1900, stream=True, extra_body=body, extra_headers=VLLM)
        for _, _ in zip(range(10), stream, strict=False):
            pass
        stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).completions.create(
                model="chat", prompt="a", max_tokens=1900, extra_body=body, extra_headers=VLLM
            )
    assert wait_until_idle(stack, before) - before < 1700


def test_the_router_tells_of_both_and_counts_nothing_as_running(stack: LocalStack, client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    offered = card.model_extra["pagoda"]["variants"] if card.model_extra else []
    assert offered == [
        {"name": "own", "backend": "pagoda", "quantization": "none"},
        {"name": "vllm", "backend": "vllm", "quantization": None},
    ]


def test_a_vllm_that_is_killed_ends_its_streams_with_an_error_and_the_other_backend_serves_on(
    stack: LocalStack, client: openai.OpenAI
) -> None:
    """Last: a new vLLM takes a minute to start."""
    described = stack.pagoda("describe", "chat").stdout
    pid = next(int(line.split("pid ")[1].split()[0]) for line in described.splitlines() if "chat-vllm-0" in line and "pid " in line)
    stream = client.completions.create(
        model="chat", prompt="a", max_tokens=500, stream=True, extra_body={"ignore_eos": True}, extra_headers=VLLM
    )
    next(iter(stream))
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="was lost"):
        list(stream)
    answer = client.chat.completions.create(model="chat", messages=QUESTION, temperature=0, max_tokens=40)
    assert "73" in (answer.choices[0].message.content or "")
