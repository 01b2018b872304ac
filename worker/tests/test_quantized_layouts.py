"""Readers of published quantized layouts: each number as its own project means it, and what is wrong said with file and tensor."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from published_layouts import Published, awq, compressed, compressed_with_order, fp8_blocks, gptq, random_weight

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.models.formats.detection import layout_of
from pagoda_worker.models.formats.stored import ReadWeight, StoredModule
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight

NAME = "model.layers.0.mlp.down_proj"
WEIGHT = random_weight(32, 96)
DYNAMIC8 = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
FLOAT8 = {**DYNAMIC8, "type": "float"}
INT4, INT8, FP8 = {"num_bits": 4, "type": "int"}, {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}

LAYOUTS: dict[str, tuple[Callable[[], Published], type]] = {
    "gptq": (lambda: gptq(WEIGHT), Int4Weight),
    "gptq, asymmetric": (lambda: gptq(WEIGHT, symmetric=False), Int4Weight),
    "gptq, act-order": (lambda: gptq(WEIGHT, act_order=True), Int4Weight),
    "gptq, one group": (lambda: gptq(WEIGHT, group_size=-1), Int4Weight),
    "gptq v2": (lambda: gptq(WEIGHT, version=2), Int4Weight),
    "gptq v2, asymmetric, act-order": (lambda: gptq(WEIGHT, version=2, symmetric=False, act_order=True), Int4Weight),
    "gptq, 8 bits in groups": (lambda: gptq(WEIGHT, bits=8), torch.Tensor),
    "gptq, 8 bits in groups, act-order": (lambda: gptq(WEIGHT, bits=8, act_order=True, symmetric=False), torch.Tensor),
    "gptq, 8 bits": (lambda: gptq(WEIGHT, bits=8, group_size=-1), Int8Weight),
    "awq": (lambda: awq(WEIGHT), Int4Weight),
    "awq, groups of 48": (lambda: awq(WEIGHT, group_size=48), Int4Weight),
    "W4A16": (lambda: compressed(WEIGHT, "pack-quantized", **INT4, strategy="group", group_size=32), Int4Weight),
    "W4A16, asymmetric": (
        lambda: compressed(WEIGHT, "pack-quantized", **INT4, strategy="group", group_size=32, symmetric=False),
        Int4Weight,
    ),
    "W4A16, by channel": (lambda: compressed(WEIGHT, "pack-quantized", **INT4, strategy="channel"), Int4Weight),
    "W4A16, act-order": (lambda: compressed_with_order(WEIGHT), Int4Weight),
    "W8A16": (lambda: compressed(WEIGHT, "pack-quantized", **INT8, strategy="channel"), Int8Weight),
    "W8A16, groups": (lambda: compressed(WEIGHT, "pack-quantized", **INT8, strategy="group", group_size=32), torch.Tensor),
    "W8A8": (lambda: compressed(WEIGHT, "int-quantized", activations=DYNAMIC8, **INT8, strategy="channel"), Int8Weight),
    "W8A8, one scale": (lambda: compressed(WEIGHT, "int-quantized", activations=DYNAMIC8, **INT8, strategy="tensor"), Int8Weight),
    "W8A8, asymmetric": (
        lambda: compressed(WEIGHT, "int-quantized", activations=DYNAMIC8, **INT8, strategy="channel", symmetric=False),
        torch.Tensor,
    ),
    "FP8, one scale": (lambda: compressed(WEIGHT, "float-quantized", activations=FLOAT8, **FP8, strategy="tensor"), Fp8Weight),
    "FP8, by channel": (lambda: compressed(WEIGHT, "float-quantized", activations=FLOAT8, **FP8, strategy="channel"), Fp8Weight),
    "FP8, by block": (
        lambda: compressed(WEIGHT, "float-quantized", activations=FLOAT8, **FP8, strategy="block", block_structure=[16, 32]),
        Fp8Weight,
    ),
    "FP8, naive": (lambda: compressed(WEIGHT, "naive-quantized", activations=FLOAT8, **FP8, strategy="channel"), Fp8Weight),
    "fp8 with weight_scale_inv": (lambda: fp8_blocks(WEIGHT), Fp8Weight),
    "fp8 whose blocks are cut": (lambda: fp8_blocks(WEIGHT, (24, 64)), Fp8Weight),
}


def read(published: Published, *, name: str = NAME, shape: tuple[int, int] = (32, 96)) -> ReadWeight:
    layout = layout_of({"quantization_config": published.config})
    assert layout is not None
    module = StoredModule.of(name, shape, published.tensors, "model.safetensors")
    assert layout.quantizes(name, module.parts)
    assert module.parts <= layout.used | layout.unread
    return layout.read(module)


def meaning_of(weight: ReadWeight) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantized(torch.float32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_number_is_what_its_project_means_by_it(name: str):
    make, form = LAYOUTS[name]
    published = make()
    weight = read(published)
    assert isinstance(weight, form)
    assert tuple(weight.shape) == (32, 96)
    # the other side multiplies in the dtype of the scales; ours is float32
    torch.testing.assert_close(meaning_of(weight), published.meaning, rtol=1e-6, atol=1e-7)
    assert (meaning_of(weight) - WEIGHT).abs().max() < 0.08, "and close to what was quantized"


def without(part: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.pop(part)


def having(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.update({part: change(tensors[part])})


WRONG: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "gptq without zeros": ("gptq", without("qzeros"), "qzeros' is missing; the layer has g_idx, qweight, scales"),
    "act-order without an order": ("gptq, act-order", without("g_idx"), "g_idx' is missing"),
    "gptq v1 with the zeros of v2": (
        "gptq",
        having("qzeros", lambda t: t + 0x11111111),
        "qzeros' holds zeros of checkpoint_format gptq_v2",
    ),
    "gptq v2 with the zeros of v1": (
        "gptq v2",
        having("qzeros", lambda t: t - 0x11111111),
        "qzeros' holds zeros of checkpoint_format gptq, ",
    ),
    "gptq of fewer inputs": (
        "gptq",
        having("qweight", lambda t: t[:-1]),
        r"qweight' has shape \[11, 32\], .* asks for \[12, 32\]",
    ),
    "gptq in floats": ("gptq", having("qweight", torch.Tensor.float), "qweight' is float32, it must be int32"),
    "gptq of other groups": ("gptq", having("scales", lambda t: t[:2]), r"scales' has shape \[2, 32\], config.json asks for \[3, 32\]"),
    "gptq with NaN": ("gptq", having("scales", lambda t: t * float("nan")), "scales' holds a scale that is no finite number"),
    "act-order of uneven groups": ("gptq", having("g_idx", lambda t: t * 0), "g_idx' must give each of 3 groups as many inputs"),
    "act-order beyond the groups": ("gptq", having("g_idx", lambda t: t + 1), "g_idx' must give each of 3 groups"),
    "act-order below the groups": ("gptq", having("g_idx", lambda t: t - 1), "g_idx' must give each of 3 groups"),
    "awq transposed": ("awq", having("qweight", lambda t: t.T), r"qweight' has shape \[4, 96\], config.json asks for \[96, 4\]"),
    "awq without scales": ("awq", without("scales"), "scales' is missing"),
    "packed in another shape": ("W4A16", having("weight_shape", lambda t: t + 1), r"weight_shape' says \[33, 97\], config.json asks for"),
    "packed and plain": ("W4A16", without("weight_packed"), "weight_packed' is missing; the layer has weight_scale, weight_shape"),
    "zero points that are not packed": (
        "W4A16, asymmetric",
        having("weight_zero_point", lambda t: t[:2]),
        r"weight_zero_point' has shape \[2, 3\], config.json asks for \[4, 3\]",
    ),
    "int8 in bf16": ("W8A8", having("weight", lambda t: t.bfloat16()), "weight' is bfloat16, it must be int8"),
    "a scale too few": ("W8A8", having("weight_scale", lambda t: t[1:]), r"weight_scale' has shape \[31, 1\], config.json asks for"),
    "fp8 in bf16": ("FP8, by channel", having("weight", lambda t: t.bfloat16()), "weight' is bfloat16, it must be float8_e4m3fn"),
    "fp8 of other blocks": (
        "fp8 with weight_scale_inv",
        having("weight_scale_inv", lambda t: t[:, :2]),
        r"has shape \[2, 2\], .* asks for \[2, 3\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_file_and_tensor(case: str):
    name, change, sentence = WRONG[case]
    published = LAYOUTS[name][0]()
    change(published.tensors)
    with pytest.raises(ModelError, match=rf"model.safetensors: tensor '{re.escape(NAME)}\..*{sentence}"):
        read(published)


CONFIGS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no object": ({"quantization_config": 3}, ModelError, "quantization_config must be an object"),
    "another method": ({"quantization_config": {"quant_method": "quip"}}, UnsupportedModel, "quant_method 'quip' is not supported; awq, "),
    "no method": ({"quantization_config": {"bits": 4}}, UnsupportedModel, "quant_method None is not supported"),
    "gptq of 3 bits": (
        {"quantization_config": {"quant_method": "gptq", "bits": 3}},
        UnsupportedModel,
        "a GPTQ checkpoint with bits 3 .* 4 or 8",
    ),
    "gptq without bits": ({"quantization_config": {"quant_method": "gptq"}}, ModelError, "quantization_config: bits must be a positive"),
    "gptq for marlin": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}},
        UnsupportedModel,
        "checkpoint_format 'marlin' is not supported; only 'gptq' or 'gptq_v2' is",
    ),
    "gptq in groups of 0": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}},
        UnsupportedModel,
        "group_size 0",
    ),
    "gptq by module": (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}},
        UnsupportedModel,
        "`dynamic` settings by module",
    ),
    "awq for gemv": ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}, UnsupportedModel, "version 'gemv'"),
    "no groups of modules": (
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
        ModelError,
        "config_groups must say what is quantized",
    ),
    "a pattern that is none": (
        {"quantization_config": {**compressed(WEIGHT, "int-quantized", **INT8, strategy="channel").config, "ignore": ["re:("]}},
        ModelError,
        r"'re:\(' is no pattern",
    ),
    "4 bits of float": (
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float"}}},
            }
        },
        UnsupportedModel,
        "format 'nvfp4-pack-quantized' is not supported",
    ),
    "blocks of nothing": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
        ModelError,
        "weight_block_size must be two positive integers",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_what_config_json_says_wrongly_is_refused_by_name(case: str):
    raw, error, sentence = CONFIGS[case]
    with pytest.raises(error, match=sentence):
        asked(raw)


def asked(raw: dict[str, Any]) -> bool:
    layout = layout_of(raw)
    return layout is not None and layout.quantizes(NAME, frozenset({"weight"}))


def test_a_plain_checkpoint_has_no_layout():
    assert layout_of({"architectures": ["LlamaForCausalLM"]}) is None


@pytest.mark.parametrize(
    ("targets", "ignore", "quantized"),
    [
        (["Linear"], ["lm_head"], True),
        (["Linear"], [NAME], False),
        (["Linear"], [r"re:.*down_proj$"], False),
        ([r"re:.*mlp\..*"], [], True),
        ([r"re:mlp"], [], False),
        (["model.layers.1.mlp.down_proj"], [], False),
    ],
    ids=str,
)
def test_targets_and_ignore_lists_are_honoured(targets: list[str], ignore: list[str], quantized: bool):
    config = compressed(WEIGHT, "int-quantized", **INT8, strategy="channel").config
    config["config_groups"]["group_0"]["targets"], config["ignore"] = targets, ignore
    layout = layout_of({"quantization_config": config})
    assert layout is not None
    assert layout.quantizes(NAME, frozenset({"weight", "weight_scale"})) == quantized


def test_a_quantized_module_that_should_be_plain_is_refused():
    published = awq(WEIGHT)
    published.config["modules_to_not_convert"] = ["down_proj"]
    with pytest.raises(ModelError, match=r"is quantized; modules_to_not_convert of config.json says that it is not"):
        read(published)


def test_the_zeros_of_version_1_wrap_as_in_its_kernels():
    """A stored 15 means 0: 16 does not fit."""
    published = gptq(WEIGHT, version=2, symmetric=False)
    published.config["checkpoint_format"] = "gptq"
    published.tensors["qzeros"].fill_(-1)
    weight = read(published)
    assert isinstance(weight, Int4Weight)
    assert weight.zeros is not None
    assert int(weight.zeros.max()) == 0
