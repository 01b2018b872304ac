"""Logprobs of prompts and embeddings against transformers, in every way that a prompt can come to be computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import Outcome, run_all
from random_checkpoint import VOCAB, kv_bytes, small_engine
from transformers import AutoModelForCausalLM

from pagoda_worker.errors import RequestRefused
from pagoda_worker.execution.prompt_logprobs import PromptLogprobsCollector
from pagoda_worker.request import PromptLogprobs, Request, Sampling

Checkpoint = Callable[..., Path]
PROMPTS = [[(7 * i + 3 * each) % VOCAB for i in range(length)] for each, length in enumerate((45, 2, 1, 33, 17))]
K = 4
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def truth(checkpoint: Checkpoint) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint(), dtype=torch.float32).eval()


def ask(request_id: str, prompt: list[int], **fields: Any) -> Request:
    return Request(request_id=request_id, prompt_ids=prompt, **{"max_tokens": 4, "ignore_eos": True, **fields})


@torch.inference_mode()
def check_logprobs(truth: Any, prompt: list[int], told: PromptLogprobs) -> None:
    expected = truth(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
    assert told.k == K
    np.testing.assert_allclose(told.own, expected.gather(1, torch.tensor(prompt)[1:, None]).squeeze(1), atol=TOLERANCE)
    best = expected.topk(K)
    np.testing.assert_allclose(np.reshape(told.top, (-1, K)), best.values, atol=TOLERANCE)
    assert np.reshape(told.top_ids, (-1, K)).tolist() == best.indices.tolist()


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_batch_tokens": 8}, {"max_batch_tokens": 11, "max_running": 2}],
    ids=["whole", "in chunks", "in chunks, two at a time"],
)
def test_prompt_logprobs_are_those_of_transformers(checkpoint: Checkpoint, truth: Any, settings: dict[str, Any]):
    engine = small_engine(checkpoint(), **settings)
    engine.runner.prompt_logprobs = PromptLogprobsCollector(vocab_size=VOCAB, slice_values=5 * VOCAB)
    plain = [ask(f"plain {i}", prompt) for i, prompt in enumerate(PROMPTS)]
    asked = [ask(f"asked {i}", prompt, prompt_logprobs=K) for i, prompt in enumerate(PROMPTS)]
    for _ in range(2):  # the second time the prefix cache knows the prompts
        outcomes = run_all(engine, *plain, *asked)
        for i, prompt in enumerate(PROMPTS):
            (told,) = outcomes[f"asked {i}", 0].prompt_logprobs
            check_logprobs(truth, prompt, told)
            assert outcomes[f"asked {i}", 0].tokens == outcomes[f"plain {i}", 0].tokens
            assert not outcomes[f"plain {i}", 0].prompt_logprobs


def test_they_are_told_once_to_n_sequences_and_when_eos_comes_first(checkpoint: Checkpoint, truth: Any):
    engine = small_engine(checkpoint())
    ends = Sampling(logit_bias={1: 100.0})
    outcomes = run_all(
        engine,
        ask("n", PROMPTS[0], n=3, prompt_logprobs=K),
        ask("eos", PROMPTS[3], prompt_logprobs=K, sampling=ends, ignore_eos=False),
        ask("own", PROMPTS[3], prompt_logprobs=0),
    )
    (told,) = [each for i in range(3) for each in outcomes["n", i].prompt_logprobs]
    check_logprobs(truth, PROMPTS[0], told)
    assert outcomes["eos", 0].tokens == []
    check_logprobs(truth, PROMPTS[3], outcomes["eos", 0].prompt_logprobs[0])
    (own,) = outcomes["own", 0].prompt_logprobs
    assert (len(own.own), own.top, own.top_ids) == (32, [], [])


def test_a_sibling_that_found_no_row_does_not_tell_them_again(checkpoint: Checkpoint, truth: Any):
    engine = small_engine(checkpoint(), max_running=2)
    outcomes = run_all(engine, ask("busy", PROMPTS[4]), ask("n", PROMPTS[0], n=3, prompt_logprobs=K, max_tokens=1))
    (told,) = [each for i in range(3) for each in outcomes["n", i].prompt_logprobs]
    check_logprobs(truth, PROMPTS[0], told)


def test_a_preempted_prompt_is_told_once_and_right(checkpoint: Checkpoint, truth: Any):
    engine = small_engine(checkpoint(), kv_cache_bytes=kv_bytes(7), max_model_len=112, max_batch_tokens=24)
    asked = [ask(f"{i}", PROMPTS[i], prompt_logprobs=K, max_tokens=40) for i in (0, 3, 4)]
    outcomes = run_all(engine, *asked)
    assert engine.idle_state().preemptions_total > 0
    for i in (0, 3, 4):
        (told,) = outcomes[f"{i}", 0].prompt_logprobs
        check_logprobs(truth, PROMPTS[i], told)


def test_a_prompt_too_long_for_one_message_is_refused_with_the_length_that_fits(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    with pytest.raises(RequestRefused, match=r"with 20 it may have 49932 tokens") as refusal:
        engine.submit(ask("a", [5] * 50_000, prompt_logprobs=20))
    assert refusal.value.param == "prompt_logprobs"


# ---------------------------------------------------------------- embeddings


@torch.inference_mode()
def cosine(truth: Any, prompt: list[int], outcome: Outcome) -> float:
    state = truth.base_model(torch.tensor([prompt])).last_hidden_state[0, -1].double()
    given = torch.tensor(outcome.embedding, dtype=torch.float64)
    assert abs(given.norm().item() - 1) < 1e-6
    return float(torch.nn.functional.cosine_similarity(given, state, dim=0))


@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 11}], ids=["whole", "in chunks"])
def test_an_embedding_is_the_last_hidden_state_of_transformers(checkpoint: Checkpoint, truth: Any, settings: dict[str, Any]):
    engine = small_engine(checkpoint(), **settings)
    expected = {i: run_all(engine, ask("plain", prompt))["plain", 0].tokens for i, prompt in enumerate(PROMPTS)}
    embeds = [ask(f"embed {i}", prompt, embedding=True, max_tokens=1) for i, prompt in enumerate(PROMPTS)]
    outcomes = run_all(engine, *embeds, *(ask(f"plain {i}", prompt) for i, prompt in enumerate(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        outcome = outcomes[f"embed {i}", 0]
        assert cosine(truth, prompt, outcome) > 1 - 1e-6
        assert (outcome.tokens, outcome.reason) == ([], "STOP")
        assert outcome.finish is not None
        assert (outcome.finish.usage.prompt_tokens, outcome.finish.usage.completion_tokens) == (len(prompt), 0)
        assert outcome.finish.timings.last_token_mono_us == outcome.finish.timings.first_token_mono_us > 0
        assert outcomes[f"plain {i}", 0].tokens == expected[i]
    assert outcomes["embed 0", 0].finish is not None
    assert outcomes["embed 0", 0].finish.usage.cached_tokens == 32, "the cache helps: only the last state is needed"


def test_a_last_chunk_of_one_token_is_no_decode_of_an_embedding(checkpoint: Checkpoint, truth: Any):
    engine = small_engine(checkpoint(), max_batch_tokens=16)
    outcome = run_all(engine, ask("a", PROMPTS[3], embedding=True, max_tokens=1))["a", 0]
    assert cosine(truth, PROMPTS[3], outcome) > 1 - 1e-6


@pytest.mark.parametrize("model_type", ["gpt2", "mistral", "qwen3"])
def test_other_families_have_both(checkpoint: Checkpoint, model_type: str):
    folder = checkpoint(f"outputs of {model_type}", model_type=model_type)
    its_truth = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = [ask("logprobs", PROMPTS[0], prompt_logprobs=K), ask("embedding", PROMPTS[0], embedding=True, max_tokens=1)]
    outcomes = run_all(small_engine(folder, max_batch_tokens=20), *asked)
    check_logprobs(its_truth, PROMPTS[0], outcomes["logprobs", 0].prompt_logprobs[0])
    assert cosine(its_truth, PROMPTS[0], outcomes["embedding", 0]) > 1 - 1e-6


def test_an_embedding_in_bf16_points_the_same_way(checkpoint: Checkpoint, truth: Any):
    engine = small_engine(checkpoint(), dtype="bf16")
    outcome = run_all(engine, ask("a", PROMPTS[0], embedding=True, max_tokens=1))["a", 0]
    assert cosine(truth, PROMPTS[0], outcome) > 1 - 1e-3


def test_numbers_that_are_not_finite_are_no_embedding(checkpoint: Checkpoint):
    engine = small_engine(checkpoint())
    engine.runner.model.destinations()["model.embed_tokens.weight"][150] = float("nan")
    outcomes = run_all(engine, ask("bad", [150, 3], embedding=True, max_tokens=1), ask("good", [3, 4], embedding=True, max_tokens=1))
    assert (outcomes["bad", 0].embedding, outcomes["bad", 0].reason) == (None, "ENGINE_ERROR")
    assert outcomes["good", 0].reason == "STOP"
