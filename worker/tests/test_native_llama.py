"""Steps by one native call: the same bits as operation by operation, in every form that the call takes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_runs import run_all
from logits_tap import logits_of
from random_adapter import write_adapter
from random_checkpoint import small_engine
from scripted_proposer import speculate
from test_speculation import tokens_of

from pagoda_worker.engine import Engine
from pagoda_worker.layers import selection
from pagoda_worker.models.native_llama import NOTHING
from pagoda_worker.native.library import cpu_flags, load_library, usable
from pagoda_worker.request import Request, Sampling
from pagoda_worker.sampling.most_likely import most_likely

pytestmark = pytest.mark.skipif(load_library() is None, reason="no native kernels for this machine")

Outputs = dict[tuple[str, int], list[int]]
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
FORMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied, one key head": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "biases everywhere": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3, with normed heads of 64": {"model_type": "qwen3", "head_dim": 64},
    "mistral, with a window": {"model_type": "mistral", "sliding_window": 12},
    "vocabulary of no whole panels": {"vocab_size": 2 * 1024 + 157},
}


@pytest.fixture(params=usable(cpu_flags()))
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines compute by those of one instruction set after the other."""
    library = load_library(request.param)
    if library is None:
        pytest.skip(f"no kernels for {request.param}")
    monkeypatch.setattr(selection, "load_library", lambda: library)


def asked(*, logprobs: bool, adapters: Sequence[str] = ("",)) -> list[Request]:
    """Of several lengths, some sampled, one for two sequences, ending one after another, so that steps have many numbers of rows.
    `adapters` in turn."""
    return [
        Request(
            request_id=f"{i}",
            prompt_ids=[2 + (7 * i + 5 * j) % 150 for j in range(length)],
            max_tokens=4 + 3 * i,
            n=2 if i == 5 else 1,
            ignore_eos=True,
            top_logprobs=2 if logprobs else None,
            sampling=Sampling(temperature=0.8, seed=i) if i % 4 == 3 else Sampling(),
            adapter=adapters[i % len(adapters)],
        )
        for i, length in enumerate((3, 40, 33, 7, 1, 18, 21, 5, 70))
    ]


def without_the_call(engine: Engine) -> Engine:
    engine.runner.native = None
    return engine


def calls_of(engine: Engine) -> list[int]:
    """How many samplers each call has from here on."""
    native = engine.runner.native
    calls: list[int] = []
    assert native is not None
    step = native.step

    def counted(places: Any, chunks: Any, samplers: Any, adapters: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(samplers.shape[1])
        return step(places, chunks, samplers, adapters)

    native.step = counted  # type: ignore[method-assign]
    return calls


def step_by_step(
    engine: Engine, outputs: Outputs, adapters: Sequence[str], *, at_once: bool
) -> tuple[dict[tuple[int, ...], list[bytes]], list[torch.Tensor]]:
    """Logits of every place by the tokens before it, and the cache afterwards, as bytes. `outputs` are guessed, some of them wrongly."""
    calls = calls_of(engine)
    if not at_once:
        without_the_call(engine)
    if outputs:
        speculate(engine, outputs)
    found: dict[tuple[int, ...], list[bytes]] = {}
    with logits_of(engine) as seen:
        run_all(engine, *asked(logprobs=True, adapters=adapters))
    assert not at_once or max(calls) >= len(asked(logprobs=True))
    for tokens, logits in seen:
        found.setdefault(tuple(tokens), []).append(logits.numpy().tobytes())
    return {tokens: sorted(each) for tokens, each in found.items()}, [cache.view(torch.uint8) for cache in engine.runner.caches]


def same_bits(folder: Path, **settings: Any) -> None:
    """Of steps that decode, that verify guesses, and that read parts of prompts beside both."""
    settings = {"dtype": "bf16", "max_batch_tokens": 48, **settings}
    adapters = ["", *settings.get("adapters", ())]
    alone = tokens_of(run_all(small_engine(folder, **settings), *asked(logprobs=False, adapters=adapters)))
    for outputs in ({}, alone):
        (seen, caches), (expected, expected_caches) = (
            step_by_step(small_engine(folder, **settings), outputs, adapters, at_once=each) for each in (True, False)
        )
        assert len(expected) > 100
        assert seen == expected
        assert all(map(torch.equal, caches, expected_caches))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_model_has_the_bits_of_single_operations(form: dict[str, Any], checkpoint: Callable[..., Path]):
    same_bits(checkpoint("at once " + str(sorted(form)), **{**WIDE, **form}))


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_every_form_of_weights_and_cache_has_them_too(quantization: str, kv_dtype: str, checkpoint: Callable[..., Path]):
    same_bits(checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True), quantization=quantization, kv_dtype=kv_dtype)


@pytest.mark.usefixtures("kernels")
def test_every_instruction_set_has_them_too(checkpoint: Callable[..., Path]):
    same_bits(checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True), quantization="int8")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_steps_with_adapters_have_them_too(quantization: str, checkpoint: Callable[..., Path], tmp_path: Path):
    base = checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True)
    adapters = {
        "of rank 3": write_adapter(tmp_path / "3", base, rank=3),
        "of q and v": write_adapter(tmp_path / "qv", base, rank=16, targets=("q_proj", "v_proj"), seed=1),
        "of gate": write_adapter(tmp_path / "gate", base, rank=40, targets=("gate_proj",), seed=2),
        "of rank 64": write_adapter(tmp_path / "64", base, rank=64, seed=3),
    }
    same_bits(base, quantization=quantization, adapters=adapters)


def test_the_likeliest_ids_are_those_of_the_sampler(checkpoint: Callable[..., Path]):
    engine = small_engine(checkpoint("at once, many words", **WIDE, vocab_size=3001), dtype="bf16")
    model: Any = engine.runner.model
    model.embedding[5] = float("nan")
    model.embedding[7] = 0.0  # all logits are equal
    model.embedding[9:] = -model.embedding[9:]
    native, rows = engine.runner.native, engine.runner.rows
    assert native is not None
    rows.tokens[:12, 0] = torch.arange(12)
    rows.tables[:12, 0] = torch.arange(12)
    rows_of_places, first = np.arange(12), np.zeros(12, np.int64)
    logits, ids = native.step(np.stack((rows_of_places, first)), NOTHING, np.stack((rows_of_places, rows_of_places, first + 1)))
    expected, finite = most_likely(logits)
    assert finite.tolist() == [i != 5 for i in range(12)]
    assert ids.tolist() == torch.where(finite, expected, -1).tolist()
    assert rows.tokens[:12, 1].tolist() == ids.clamp(min=0).tolist()
    assert ids[7] == 0


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_an_adapter_of_one_changes_nothing_for_the_others(quantization: str, checkpoint: Callable[..., Path], tmp_path: Path):
    base = checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True)
    settings: dict[str, Any] = {"dtype": "bf16", "quantization": quantization, "adapters": {"a": write_adapter(tmp_path / "a", base)}}
    expected = tokens_of(run_all(small_engine(base, **settings), *asked(logprobs=False)))
    requests = [replace(each, adapter="a" if i == 2 else "") for i, each in enumerate(asked(logprobs=False))]
    found = tokens_of(run_all(small_engine(base, **settings), *requests))
    assert [key for key, tokens in found.items() if tokens != expected[key]] == [("2", 0)]


def test_steps_with_adapters_that_no_product_takes_go_operation_by_operation(checkpoint: Callable[..., Path], tmp_path: Path):
    """Bytes are filled up to whole steps, and bf16 beside them is not."""
    base = checkpoint("at once, 80 wide", **{**WIDE, "hidden_size": 80})
    settings: dict[str, Any] = {"dtype": "bf16", "quantization": "int8", "adapters": {"a": write_adapter(tmp_path / "a", base)}}
    requests = [replace(each, adapter="a" if i == 2 else "") for i, each in enumerate(asked(logprobs=False))]
    expected = tokens_of(run_all(without_the_call(small_engine(base, **settings)), *requests))
    engine = small_engine(base, **settings)
    calls = calls_of(engine)
    assert tokens_of(run_all(engine, *requests)) == expected
    assert 0 < max(calls) < len(requests), "it serves once the adapter's request is over"


def test_what_asks_for_more_of_a_prompt_gets_it_operation_by_operation(checkpoint: Callable[..., Path]):
    base = checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True)
    requests = [replace(each, prompt_logprobs=2 if i % 3 == 1 else None) for i, each in enumerate(asked(logprobs=True))]
    requests.append(Request(request_id="vector", prompt_ids=list(range(2, 30)), max_tokens=1, embedding=True))
    settings: dict[str, Any] = {"dtype": "bf16", "max_batch_tokens": 48}
    found, expected = (
        run_all(engine, *requests) for engine in (small_engine(base, **settings), without_the_call(small_engine(base, **settings)))
    )
    assert [(each.tokens, each.prompt_logprobs, each.embedding) for each in found.values()] == [
        (each.tokens, each.prompt_logprobs, each.embedding) for each in expected.values()
    ]
    assert sum(bool(each.prompt_logprobs) for each in found.values()) == 3


def test_logprobs_of_a_prompt_whose_last_token_is_a_step_of_its_own_come_with_the_first_token(checkpoint: Callable[..., Path]):
    engine = small_engine(checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True), dtype="bf16", max_batch_tokens=16)
    engine.submit(Request(request_id="a", prompt_ids=list(range(2, 19)), max_tokens=3, ignore_eos=True, prompt_logprobs=1))
    told = [update for _ in range(4) for update in engine.step().updates if update.token_ids or update.prompt_logprobs]
    assert [update.prompt_logprobs is not None for update in told] == [True, False, False]


@pytest.mark.parametrize("decoding", [0, 1, 2, 3])
@pytest.mark.parametrize("coming", [1, 2, 3])
def test_prompts_that_come_while_others_decode_give_what_they_give_alone(decoding: int, coming: int, checkpoint: Callable[..., Path]):
    """One row and several prompts' ends, too: a batch of one column has two orders of memory."""
    base = checkpoint("at once, wide", **WIDE, attention_bias=True, mlp_bias=True)
    requests = [replace(each, n=1) for each in asked(logprobs=False)[: decoding + coming]]
    expected = tokens_of(run_all(without_the_call(small_engine(base, dtype="bf16")), *requests))
    engine = small_engine(base, dtype="bf16")
    calls = calls_of(engine)
    for request in requests[:decoding]:
        engine.submit(request)
    first = engine.step() if decoding else None
    found = tokens_of(run_all(engine, *requests[decoding:]))
    for update in first.updates if first else []:
        found[update.request_id, 0] = update.token_ids + found[update.request_id, 0]
    assert found == expected
    assert max(calls) == len(requests), "all in one step"


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (WIDE, {"dtype": "fp32"}),
        (WIDE, {"attention": "sdpa"}),
        (WIDE, {"batch_invariant": True}),
        ({"model_type": "gpt2"}, {}),
        ({**WIDE, "head_dim": 16}, {}),
        ({**WIDE, "hidden_size": 72}, {}),
    ],
    ids=["fp32", "sdpa", "batch-invariant", "gpt2", "small heads", "ragged weights"],
)
def test_what_the_call_does_not_take_goes_operation_by_operation(
    form: dict[str, Any], settings: dict[str, Any], checkpoint: Callable[..., Path]
):
    engine = small_engine(checkpoint("one by one " + str(sorted(form.items())), **form), **{"dtype": "bf16", **settings})
    assert engine.runner.native is None
    run_all(engine, *asked(logprobs=False))
