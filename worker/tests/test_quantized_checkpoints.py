"""Whole folders in every published quantized layout: the engine computes with exactly the numbers they mean, and refuses what does not fit.

transformers computes with the dequantized numbers, in a plain folder beside.
"""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from logits_tap import Truth, logits_of
from published_layouts import Published, awq, compressed, fp8_blocks, gptq, write_quantized
from random_checkpoint import small_engine
from safetensors.torch import load_file, save_file

from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.layers.attention import attend_sdpa
from pagoda_worker.layers.operators import Operators
from pagoda_worker.models.files import read_json
from pagoda_worker.models.llama import Llama
from pagoda_worker.models.registry import footprint_as_stored, footprint_of, load_model
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight

Checkpoint = Callable[..., Path]
DYNAMIC: dict[str, Any] = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


def w4a16(weight: torch.Tensor) -> Published:
    return compressed(weight, "pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=False)


def w8a8(weight: torch.Tensor) -> Published:
    return compressed(weight, "int-quantized", activations={**DYNAMIC, "type": "int"}, num_bits=8, type="int", strategy="channel")


def fp8(weight: torch.Tensor) -> Published:
    return compressed(weight, "float-quantized", activations={**DYNAMIC, "type": "float"}, num_bits=8, type="float", strategy="tensor")


LAYOUTS: dict[str, tuple[Callable[[torch.Tensor], Published], type]] = {
    "gptq": (lambda weight: gptq(weight, symmetric=False), Int4Weight),
    "gptq v2, act-order": (lambda weight: gptq(weight, version=2, act_order=True), Int4Weight),
    "gptq, 8 bits in groups": (lambda weight: gptq(weight, bits=8), torch.Tensor),
    "awq": (awq, Int4Weight),
    "W4A16": (w4a16, Int4Weight),
    "W8A8": (w8a8, Int8Weight),
    "FP8": (fp8, Fp8Weight),
    "fp8 by block": (lambda weight: fp8_blocks(weight, (32, 32)), Fp8Weight),
    "fp8 in blocks that no part fills": (lambda weight: fp8_blocks(weight, (24, 32)), Fp8Weight),
}


@pytest.fixture(scope="module")
def written(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The quantized folder and the plain one of what it means."""
    root = tmp_path_factory.mktemp("quantized")

    def write(name: str) -> tuple[Path, Path]:
        folder, meant = root / name, root / f"{name}, plain"
        if not folder.exists():
            write_quantized(checkpoint(), folder, LAYOUTS[name][0], meant=meant)
        return folder, meant

    return write


def loaded(folder: Path, **settings: Any) -> Llama:
    defaults: dict[str, Any] = {"max_model_len": 64, "dtype": torch.float32, "device": torch.device("cpu"), "packed": True}
    operators = AsMeant(attend_sdpa)
    model = load_model(folder, read_json(folder, "config.json"), operators=operators, **{**defaults, **settings})
    assert isinstance(model, Llama)
    return model


class AsMeant(Operators):
    """Products by the plain numbers."""

    def pack(self, weight: Any, *, gated: bool) -> None:
        self.held.append(weight)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.held: list[Any] = []


def weights_of(model: Llama) -> list[Any]:
    assert isinstance(model.operators, AsMeant)
    return model.operators.held


def plain(weight: Any) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantized(torch.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_engine_holds_what_the_checkpoint_means(written: Callable[[str], tuple[Path, Path]], name: str):
    folder, meant = written(name)
    held, expected = weights_of(loaded(folder)), weights_of(loaded(meant))
    assert len(held) == len(expected) == 9
    assert all(isinstance(weight, LAYOUTS[name][1]) for weight in held[1:]), "held as it is stored, q, k, v and gate, up joined"
    for ours, theirs in zip(held, expected, strict=True):
        torch.testing.assert_close(plain(ours), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["gptq v2, act-order", "W4A16", "fp8 by block"])
def test_its_logits_are_those_of_transformers_with_the_dequantized_numbers(written: Callable[[str], tuple[Path, Path]], name: str):
    folder, meant = written(name)
    engine = small_engine(folder)
    with logits_of(engine) as seen:
        engine.generate([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]], max_tokens=5, ignore_eos=True)
    rounding = 0.1 if "fp8" in name else 0.3  # a CPU's kernels round their inputs: fp8's to bf16, int4's to bytes
    assert Truth(meant).worst_difference(seen) < rounding


def test_a_layer_that_is_listed_as_plain_is_read_plain(checkpoint: Checkpoint, tmp_path: Path):
    """Beside quantized neighbours of its product: v_proj is part of q, k, v."""

    def quantize(weight: torch.Tensor) -> Published:
        published = w8a8(weight)
        published.config["ignore"] = ["lm_head", "re:.*v_proj"]
        return published

    folder, meant = tmp_path / "model", tmp_path / "plain"
    write_quantized(checkpoint(), folder, quantize, meant=meant, keep="v_proj")
    held, expected = weights_of(loaded(folder)), weights_of(loaded(meant))
    assert [type(each) for each in held[1:]] == [torch.Tensor, Int8Weight, Int8Weight, Int8Weight] * 2
    for ours, theirs in zip(held, expected, strict=True):
        torch.testing.assert_close(plain(ours), theirs, rtol=1e-6, atol=1e-7)


def test_memory_is_planned_by_what_is_stored(written: Callable[[str], tuple[Path, Path]]):
    """Else a model that fits would be refused."""
    folder, _ = written("W4A16")
    raw = read_json(folder, "config.json")
    full, stored = (each.weight_bytes(2) for each in (footprint_of(raw), footprint_as_stored(folder, raw, 2)))
    linears = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    assert full - stored == pytest.approx(linears * (2 - 0.5 - 4 / 32), rel=0.03), "half a byte each, and a scale for each 32"
    awkward = read_json(written("gptq, 8 bits in groups")[0], "config.json")
    assert footprint_as_stored(written("gptq, 8 bits in groups")[0], awkward, 2).weight_bytes(2) == full, "those become plain"


def test_extra_biases_of_nothing_are_passed_over_and_others_refused(written: Callable[[str], tuple[Path, Path]], tmp_path: Path):
    """Old quantizers wrote a bias of zeros for every layer."""
    folder = Path(copytree(written("gptq")[0], tmp_path / "model"))
    change(folder, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.bias": torch.zeros(96)}))
    loaded(folder)
    change(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.bias"].add_(1))
    with pytest.raises(ModelError, match=r"tensor 'model.layers.0.mlp.up_proj.bias' has no place in this architecture"):
        loaded(folder)


def change(folder: Path, change_them: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change_them(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


GATE = "model.layers.1.mlp.gate_proj"
BREAKS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "a layer is missing": (
        "gptq",
        lambda t: [t.pop(f"{GATE}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")],
        f"tensor '{GATE}.weight' is missing",
    ),
    "scales are missing": ("awq", lambda t: t.pop(f"{GATE}.scales"), rf"model.safetensors: tensor '{GATE}.scales' is missing"),
    "another shape": (
        "W8A8",
        lambda t: t.update({f"{GATE}.weight": t[f"{GATE}.weight"][1:].clone()}),
        rf"model.safetensors: tensor '{GATE}.weight' has shape \[95, 64\], config.json asks for \[96, 64\]",
    ),
    "a plain layer among quantized ones": (
        "W4A16",
        lambda t: (
            [t.pop(f"{GATE}.{p}") for p in ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")]
            and t.update({f"{GATE}.weight": torch.zeros(96, 64)})
        ),
        f"tensor '{GATE}.weight_packed' is missing; the layer has weight",
    ),
    "fp8 without its scales": (
        "fp8 by block",
        lambda t: t.pop(f"{GATE}.weight_scale_inv"),
        f"tensor '{GATE}.weight' is float8_e4m3fn, it must be float16",
    ),
    "a part of another layout": (
        "awq",
        lambda t: t.update({f"{GATE}.weight_packed": torch.zeros(3, dtype=torch.int32)}),
        f"tensor '{GATE}.weight_packed' has no place",
    ),
    "a quantized norm": (
        "FP8",
        lambda t: t.update({"model.norm.weight_packed": torch.zeros(3, dtype=torch.int32)}),
        "tensor 'model.norm.weight_packed' has no place",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_an_inconsistent_checkpoint_is_refused_with_the_tensors_name(
    written: Callable[[str], tuple[Path, Path]], tmp_path: Path, case: str
):
    name, break_it, sentence = BREAKS[case]
    folder = Path(copytree(written(name)[0], tmp_path / "model"))
    change(folder, break_it)
    with pytest.raises(ModelError, match=sentence):
        loaded(folder)


@pytest.mark.parametrize("cut", [100, 20_000])
def test_a_file_cut_short_is_refused_with_the_tensors_name(written: Callable[[str], tuple[Path, Path]], tmp_path: Path, cut: int):
    folder = Path(copytree(written("awq")[0], tmp_path / "model"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError, match=r"model.safetensors cannot be read: tensor '[\w.]+' ends at byte \d+"):
        loaded(folder)


def test_static_activation_scales_and_scales_of_the_kv_cache_are_not_read(written: Callable[[str], tuple[Path, Path]], tmp_path: Path):
    """The engine scales activations by what they are."""
    folder = Path(copytree(written("FP8")[0], tmp_path / "model"))
    extra = {f"{GATE}.input_scale": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1)}
    change(folder, lambda tensors: tensors.update(extra))
    assert all(isinstance(weight, Fp8Weight) for weight in weights_of(loaded(folder))[1:])


def test_compile_and_gpt2_take_no_quantized_checkpoint(written: Callable[[str], tuple[Path, Path]], checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(ConfigError, match="compile multiplies plain weights only"):
        loaded(written("awq")[0], packed=False)
    folder = Path(copytree(checkpoint("gpt2", model_type="gpt2"), tmp_path / "gpt2"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel with quantization_config is not supported"):
        small_engine(folder)
