"""Every kind of output in one engine with little memory, cancelled at will: each comes out as if it were alone, and nothing is held."""

import re
from typing import Any

import pytest
from engine_runs import run_all
from front_support import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.request import Request, Sampling, StructuredOutput

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
PATTERN = r"(ab|c){2,30}\."
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"ignore_eos": True},
    "regex": {"structured": StructuredOutput(kind="regex", text=PATTERN)},
    "wrong": {"structured": StructuredOutput(kind="regex", text="(")},
    "bad words": {"sampling": Sampling(bad_words=[[40], [41, 42]])},
    "allowed": {"sampling": Sampling(allowed_token_ids=[50, 51, 52], temperature=1.0, seed=4)},
    "penalties": {"ignore_eos": True, "sampling": Sampling(frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.2)},
    "edits": {"min_tokens": 9, "stop_token_ids": [40, 41], "sampling": Sampling(logit_bias={40: 30.0, 50: 29.0}, temperature=1.0, seed=7)},
    "prompt logprobs": {"prompt_logprobs": 2},
    "embedding": {"embedding": True, "max_tokens": 1},
}
asked = st.lists(
    st.tuples(st.sampled_from(list(KINDS)), st.integers(1, 40), st.integers(1, 24), st.integers(1, 3), st.integers(0, 12)),
    min_size=1,
    max_size=8,
)
"""(kind, prompt tokens, output tokens, n, step at which it is submitted)."""


@pytest.fixture(scope="module", params=[False, True], ids=["in step", "ahead"])
def engines(request: pytest.FixtureRequest) -> tuple[Engine, Engine]:
    """One with ample memory, and one of 9 blocks of 16 tokens (5 layers x 2 x 2 heads x 64 x 4 bytes a token)."""
    config: dict[str, Any] = {"model_dir": TINY, "device": "cpu", "dtype": "fp32", "threads": 1, "async_scheduling": request.param}
    small = Engine(EngineConfig(**config, max_running=4, max_batch_tokens=16, max_model_len=96, kv_cache_bytes=9 * 16 * 5120))
    return Engine(EngineConfig(**config, max_running=8, max_model_len=96)), small


def request_of(i: int, kind: str, prompt: int, output: int, n: int) -> Request:
    fields = {"max_tokens": output, "n": 1 if kind == "embedding" else n, **KINDS[kind]}
    fields["min_tokens"] = min(fields.get("min_tokens", 0), output)
    return Request(request_id=str(i), prompt_ids=[3 + (7 * i + k) % 900 for k in range(prompt)], **fields)


@settings(max_examples=12)
@given(requests=asked, cancels=st.dictionaries(st.integers(0, 7), st.integers(0, 20), max_size=2))
def test_any_mixture_of_outputs_is_what_each_would_be_alone(
    engines: tuple[Engine, Engine], requests: list[tuple[str, int, int, int, int]], cancels: dict[int, int]
):
    ample, small = engines
    outputs: dict[tuple[str, int], list[int]] = {}
    reasons: dict[tuple[str, int], str] = {}
    extras: dict[str, int] = {}
    rejected: set[str] = set()
    step = 0
    while small.has_work or step <= 20:
        for i, (kind, prompt, output, n, when) in enumerate(requests):
            if when == step:
                small.submit(request_of(i, kind, prompt, output, n))
        for i, when in cancels.items():
            if when == step:
                small.cancel(str(i))
        told = small.step()
        rejected |= {each.request_id for each in told.rejections}
        for update in told.updates:
            outputs.setdefault((update.request_id, update.sequence), []).extend(update.token_ids)
            extras[update.request_id] = extras.get(update.request_id, 0) + bool(update.prompt_logprobs) + bool(update.embedding)
            if update.finish:
                reasons[update.request_id, update.sequence] = update.finish.reason.name
        small.check_integrity()
        step += 1
    for i, (kind, prompt, output, n, _) in enumerate(requests):
        if kind == "wrong":
            assert str(i) in rejected or i in cancels
            continue
        alone = run_all(ample, request_of(i, kind, prompt, output, n))
        for key, outcome in alone.items():
            if reasons[key] != "CANCELLED":
                assert (outputs[key], reasons[key]) == (outcome.tokens, outcome.reason)
                assert kind != "regex" or outcome.reason == "LENGTH" or re.fullmatch(PATTERN, TOKENIZER.decode(outcome.tokens))
        if kind in ("prompt logprobs", "embedding") and i not in cancels:
            assert extras[str(i)] == 1
