"""Quantized linears as other projects publish them, written value by value from their specifications, with nothing of the engine's readers.

GPTQ: AutoGPTQ's and GPTQModel's QuantLinear.pack (github.com/AutoGPTQ/AutoGPTQ, github.com/ModelCloud/GPTQModel). AWQ: AutoAWQ's
WQLinear_GEMM.from_linear with its order_map (github.com/casper-hansen/AutoAWQ). compressed-tensors: that package itself, from PyPI.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One linear: its tensors by part, what they mean, and the quantization_config that says so."""

    tensors: dict[str, torch.Tensor]
    meaning: torch.Tensor
    """[out, in] float32."""
    config: dict[str, Any]


def random_weight(out: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, size, generator=generator) * torch.rand(out, 1, generator=generator).add(0.2) * size**-0.5


def gptq(
    weight: torch.Tensor, *, bits: int = 4, group_size: int = 32, symmetric: bool = True, act_order: bool = False, version: int = 1
) -> Published:
    out, size = weight.shape
    width = size if group_size == -1 else group_size
    groups, largest = size // width, 2**bits - 1
    group_of = np.arange(size) // width
    if act_order:
        group_of = group_of[np.random.default_rng(0).permutation(size)]
    w = weight.numpy()
    scales, zeros = np.zeros((groups, out), np.float16), np.zeros((groups, out), np.int64)
    for g in range(groups):
        for n in range(out):
            scales[g, n], zeros[g, n] = _range(w[n, group_of == g], largest, symmetric, least_zero=1 if version == 1 else 0)
    s, z = scales.astype(np.float32)[group_of].T, zeros[group_of].T
    values = np.clip(np.round(w / s) + z, 0, largest).astype(np.int64)
    per_word = 32 // bits
    qweight = np.zeros((size // per_word, out), np.uint32)
    for k in range(size):
        qweight[k // per_word] |= (values[:, k] << bits * (k % per_word)).astype(np.uint32)
    stored = zeros - 1 if version == 1 else zeros
    qzeros = np.zeros((groups, out // per_word), np.uint32)
    for n in range(out):
        qzeros[:, n // per_word] |= (stored[:, n] << bits * (n % per_word)).astype(np.uint32)
    tensors = {"qweight": _words(qweight), "qzeros": _words(qzeros), "scales": torch.from_numpy(scales)}
    tensors["g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": act_order, "sym": symmetric}
    config["checkpoint_format"] = "gptq" if version == 1 else "gptq_v2"
    return Published(tensors=tensors, meaning=torch.from_numpy((values - z) * s).float(), config=config)


def awq(weight: torch.Tensor, *, group_size: int = 32) -> Published:
    out, size = weight.shape
    groups, w = size // group_size, weight.numpy()
    scales, zeros = np.zeros((groups, out), np.float16), np.zeros((groups, out), np.int64)
    for g in range(groups):
        for n in range(out):
            scales[g, n], zeros[g, n] = _range(w[n, g * group_size : (g + 1) * group_size], 15, symmetric=False, least_zero=0)
    s, z = scales.astype(np.float32).repeat(group_size, 0).T, zeros.repeat(group_size, 0).T
    values = np.clip(np.round(w / s) + z, 0, 15).astype(np.int64)
    qweight, qzeros = np.zeros((size, out // 8), np.uint32), np.zeros((groups, out // 8), np.uint32)
    for column in range(out // 8):
        for i, output in enumerate(AWQ_ORDER):
            qweight[:, column] |= (values[column * 8 + output] << 4 * i).astype(np.uint32)
            qzeros[:, column] |= (zeros[:, column * 8 + output] << 4 * i).astype(np.uint32)
    tensors = {"qweight": _words(qweight), "qzeros": _words(qzeros), "scales": torch.from_numpy(scales)}
    return Published(tensors=tensors, meaning=torch.from_numpy((values - z) * s).float(), config={**AWQ_CONFIG, "group_size": group_size})


def compressed(weight: torch.Tensor, format_: str, *, activations: dict[str, Any] | None = None, **args: Any) -> Published:
    """`args`: of QuantizationArgs."""
    weights = QuantizationArgs(**args)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=weights, input_activations=QuantizationArgs(**activations) if activations else None
    )
    scale, zero = _qparams(weight, weights)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(format_)
    tensors = {part: tensor.contiguous() for part, tensor in compressor.compress(state, scheme).items() if tensor is not None}
    meaning = compressor.decompress(dict(tensors), scheme)["weight"].float()
    group = {
        "targets": ["Linear"],
        "weights": weights.model_dump(mode="json"),
        "input_activations": scheme.input_activations.model_dump(mode="json") if scheme.input_activations else None,
        "output_activations": None,
    }
    config = {"quant_method": "compressed-tensors", "format": format_, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return Published(tensors=tensors, meaning=meaning, config={**config, "quantization_status": "compressed"})


def compressed_with_order(weight: torch.Tensor, *, group_size: int = 32) -> Published:
    """W4A16 whose groups are no neighbours, as compressed-tensors wrote them up to 0.12 (actorder group): columns where they were, and the
    group of each in weight_g_idx."""
    size = weight.shape[1]
    order = torch.from_numpy(np.random.default_rng(0).permutation(size))
    in_groups = compressed(weight[:, order], "pack-quantized", num_bits=4, type="int", strategy="group", group_size=group_size)
    back = torch.argsort(order)
    values = unpack_from_int32(in_groups.tensors["weight_packed"], 4, weight.shape)[:, back]
    tensors = {**in_groups.tensors, "weight_packed": pack_to_int32(values, 4), "weight_g_idx": (back // group_size).int()}
    in_groups.config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    return Published(tensors=tensors, meaning=in_groups.meaning[:, back], config=in_groups.config)


def fp8_blocks(weight: torch.Tensor, block: tuple[int, int] = (16, 32)) -> Published:
    """As DeepSeek's weight_dequant reads them (inference/kernel.py of DeepSeek-V3): value times weight_scale_inv of its block."""
    out, size = weight.shape
    rows, columns = -(-out // block[0]), -(-size // block[1])
    scales, values, meaning = torch.zeros(rows, columns), torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros_like(weight)
    for i in range(rows):
        for j in range(columns):
            at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            scales[i, j] = weight[at].abs().max() / 448
            values.view(torch.uint8)[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn).view(torch.uint8)
            meaning[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn).float() * scales[i, j]
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    return Published(tensors={"weight": values, "weight_scale_inv": scales}, meaning=meaning, config=config)


def _range(values: np.ndarray, largest: int, symmetric: bool, *, least_zero: int) -> tuple[np.float16, int]:
    if symmetric:
        return np.float16(max(2 * np.abs(values).max() / largest, 1e-4)), (largest + 1) // 2
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = np.float16(max((high - low) / largest, 1e-4))
    return scale, int(np.clip(np.round(-low / np.float32(scale)), least_zero, largest))


def _qparams(weight: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    if args.strategy == "tensor":
        return calculate_qparams(weight.min().reshape(1), weight.max().reshape(1), args)
    if args.strategy == "channel":
        return calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), args)
    if args.strategy == "block":
        rows, columns = args.block_structure
        blocks = weight.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))
        return calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), args)
    groups = weight.unflatten(1, (-1, args.group_size))
    return calculate_qparams(groups.amin(2), groups.amax(2), args)


def _words(packed: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(packed.view(np.int32).copy())


def write_quantized(plain: Path, folder: Path, quantize: Callable[[torch.Tensor], Published], *, meant: Path, keep: str = "") -> None:
    """A checkpoint whose blocks' linears are quantized, and the plain one of what it means. `keep`: a module's name that stays plain."""
    stored, meaning, config = load_file(plain / "model.safetensors"), load_file(plain / "model.safetensors"), {}
    for name in list(stored):
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight") and not (keep and module.endswith(keep)):
            published = quantize(stored.pop(name))
            stored |= {f"{module}.{part}": tensor.contiguous() for part, tensor in published.tensors.items()}
            meaning[name], config = published.meaning, published.config
    for target, tensors, changes in ((folder, stored, {"quantization_config": config}), (meant, meaning, {})):
        copytree(plain, target)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        raw = json.loads((plain / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**raw, **changes}))
