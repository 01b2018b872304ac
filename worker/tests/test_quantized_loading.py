"""A model whose weights are rounded while it is loaded: what it holds, that it still answers, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from batch_invariance import compare, random_prompts
from front_support import TINY
from random_checkpoint import VOCAB, small_engine
from tokenizers import Tokenizer

from pagoda_worker.config import EngineConfig, Quantization
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.attention import attend_sdpa
from pagoda_worker.layers.operators import Operators
from pagoda_worker.loading.loader import load
from pagoda_worker.models.gpt2 import GPT2
from pagoda_worker.models.llama import Llama
from pagoda_worker.models.registry import footprint_of, load_model
from pagoda_worker.models.rounded import footprint_rounded
from pagoda_worker.quantization.rounding import rounded
from pagoda_worker.quantization.weights import Int8Weight

Checkpoint = Callable[..., Path]
FORMS: tuple[Quantization, ...] = ("int8", "int4", "fp8")
PROMPTS = ("What is 27 + 46?", "Repeat: apple pear plum", "The capital of France is", "2 4 6 8")


def model_of(folder: Path, **settings: Any) -> Llama | GPT2:
    raw = json.loads((folder / "config.json").read_text())
    operators, device = Operators(attend_sdpa), torch.device("cpu")
    model = load_model(folder, raw, max_model_len=64, dtype=torch.float32, device=device, operators=operators, packed=False, **settings)
    assert isinstance(model, Llama | GPT2)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", [{}, {"model_type": "gpt2"}, {"tie_word_embeddings": True}], ids=str)
def test_every_linear_is_rounded_as_its_plain_weight_would_be(checkpoint: Checkpoint, family: dict[str, Any], form: Quantization) -> None:
    assert form != "none"
    folder = checkpoint(str(family), **family)
    plain, held = model_of(folder), model_of(folder, quantization=form)
    for before, after in zip(plain.linears(), held.linears(), strict=True):
        assert isinstance(before.linear.weight, torch.Tensor)
        expected = rounded(before.linear.weight, "int8" if after.linear is held.head else form)
        assert expected is not None
        assert not isinstance(after.linear.weight, torch.Tensor | tuple | None)
        assert torch.equal(after.linear.weight.dequantized(torch.float32), expected.dequantized(torch.float32))
    assert torch.equal(plain.embedding, held.embedding)
    assert not isinstance(held.head.weight, torch.Tensor)


def test_numbers_made_up_for_timing_are_rounded_too(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint(), quantization="int8", random_weights=True)
    assert all(isinstance(fused.linear.weight, Int8Weight) for fused in model.linears())


@pytest.mark.parametrize("form", FORMS)
def test_the_estimate_of_memory_is_what_the_weights_take(checkpoint: Checkpoint, form: Quantization) -> None:
    folder = checkpoint()
    size = footprint_rounded(footprint_of(json.loads((folder / "config.json").read_text())), form, 4)
    model = model_of(folder, quantization=form)
    weights = [fused.linear.weight for fused in model.linears()]
    held = sum(w.values.nbytes + w.scales.nbytes for w in weights if w is not None and not isinstance(w, torch.Tensor | tuple))
    assert size.stored_bytes is not None
    assert held + model.embedding.nbytes == pytest.approx(size.stored_bytes, rel=0.15)


@pytest.mark.parametrize("form", FORMS)
def test_the_shipped_model_answers_nearly_as_before(form: Quantization) -> None:
    """Greedy text of the first tokens, and the likelihood that the rounded model gives to the plain one's text."""
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    plain, held = (Engine(EngineConfig(model_dir=TINY, threads=1, max_running=4, quantization=to)) for to in ("none", form))
    texts = [engine.generate(prompts, max_tokens=12, ignore_eos=True) for engine in (plain, held)]
    equal = [a == b for one, other in zip(*texts, strict=True) for a, b in zip(one.token_ids, other.token_ids, strict=True)]
    assert sum(equal) >= (0.3 if form == "int4" else 0.8) * len(equal)
    assert (plain.facts.quantization, held.facts.quantization) == ("none", form)
    assert held.facts.awake_bytes < plain.facts.awake_bytes


@pytest.mark.parametrize("form", FORMS)
def test_invariant_layers_keep_their_promise_with_rounded_weights(form: Quantization) -> None:
    config: dict[str, Any] = {"dtype": "bf16", "batch_invariant": True, "threads": 1, "quantization": form}
    tally = compare(config, TINY, prompts=random_prompts(2, 1000), tokens=8, crowds=((3, 512), (7, 24)))
    assert (tally.unequal, tally.flips) == (0, [])


def test_a_quantized_checkpoint_is_not_rounded_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    for each in checkpoint().iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantized already .*: it is held as it is stored, leave quantization out"):
        load(EngineConfig(model_dir=folder, device="cpu", quantization="int8"))


def test_compile_is_refused_beside_it(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="compile multiplies plain weights only"):
        small_engine(checkpoint(), compile=True, quantization="int8")


def test_a_vocabulary_of_random_weights_still_decodes(checkpoint: Checkpoint) -> None:
    (completion,) = small_engine(checkpoint(), quantization="int4").generate([[1, 2, 3]], max_tokens=4, ignore_eos=True)
    assert all(token < VOCAB for token in completion.token_ids)
