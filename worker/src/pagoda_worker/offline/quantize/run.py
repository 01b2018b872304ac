"""`pagoda quantize`, as one function: settings and a model folder → a new folder, and what it cost. Called by quantize_command.py."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.layers.attention import attend_sdpa
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.rotary import rotary_table
from pagoda_worker.models.files import CONFIG, Tensors, open_safetensors, read_json
from pagoda_worker.models.formats.detection import layout_of
from pagoda_worker.models.formats.gguf_file import gguf_in
from pagoda_worker.models.llama import Llama
from pagoda_worker.models.llama_config import PARSERS, LlamaConfig
from pagoda_worker.models.registry import architecture_of
from pagoda_worker.models.weights import check_whole
from pagoda_worker.offline.next_tokens import read_tokenizer
from pagoda_worker.offline.quantize.block import LINEARS
from pagoda_worker.offline.quantize.calibration import calibration_pieces
from pagoda_worker.offline.quantize.walk import Method, QuantizedBlock, Work, quantized_blocks
from pagoda_worker.offline.quantize.writing import Checkpoint, layout, new_folder, quantization_config
from pagoda_worker.quantization.grid import Recipe
from pagoda_worker.quantization.rounding import Format

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeSettings:
    to: Format
    method: Method = "rtn"
    calibration: Path | None = None
    """Text or JSONL. None: none, which only rtn can do."""
    group_size: int = 128
    """Of int4; -1: all inputs of an output."""
    symmetric: bool | None = None
    """Of int4. None: what the method is usually published with, zero points for awq and none for the others."""
    act_order: bool = False
    sparse: bool = False
    samples: int = 128
    length: int = 512
    """Tokens of a sample."""
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    linears: int
    before_bytes: int
    """Of all tensors."""
    after_bytes: int
    errors: dict[str, float]
    """By module; see QuantizedBlock."""
    calibration_tokens: int
    seconds: float


News = Callable[[int, int, str], None]
"""(linears done, linears in all, the last one)."""


def check_settings(settings: QuantizeSettings) -> None:
    """What no model could make possible. Raises ConfigError."""
    if settings.method != "rtn" and settings.calibration is None:
        raise ConfigError(f"--method {settings.method} learns from text: add --calibration FILE, or use --method rtn")
    if settings.to == "fp8" and settings.method != "rtn":
        raise ConfigError("--to fp8 has a step for every size of number, and is made by --method rtn only")
    if settings.method == "awq" and settings.to != "int4":
        raise ConfigError(f"--method awq is for int4; for {settings.to} use gptq or rtn")
    if settings.symmetric is False and settings.to != "int4":
        raise ConfigError(f"--asym gives zero points, which {settings.to} does not have: leave it out")
    if settings.act_order and settings.method != "gptq":
        raise ConfigError("--act-order is an order of GPTQ's: use it with --method gptq")
    if settings.sparse and settings.act_order:
        raise ConfigError("--sparsity 2:4 decides on four neighbours at a time: leave --act-order out")
    if settings.sparse and settings.to == "fp8":
        raise ConfigError("--sparsity 2:4 is for int8 and int4")
    if settings.group_size != -1 and settings.group_size < 8:
        raise ConfigError(f"--group-size is {settings.group_size}; it must be -1 (one group) or at least 8")


@torch.inference_mode()
def quantize(folder: Path, out: Path, settings: QuantizeSettings, news: News = lambda done, total, name: None) -> Quantized:
    """Raises ConfigError, ModelError, UnsupportedModel; `out` is then as it was."""
    check_settings(settings)
    began, raw = time.monotonic(), _source_config(folder)
    config = LlamaConfig.parse(raw)
    with open_safetensors(folder) as tensors, new_folder(out) as work_folder:
        _check_whole(tensors, raw)
        recipe = _recipe(settings, config, tensors)
        pieces = None
        if settings.calibration is not None:
            length = min(settings.length, config.max_position)
            pieces = calibration_pieces(settings.calibration, read_tokenizer(folder), length=length, samples=settings.samples)
        work = Work(recipe=recipe, method=settings.method, act_order=settings.act_order, sparse=settings.sparse)
        outside = _outside_blocks(tensors)
        checkpoint, errors = Checkpoint(work_folder, config.layers + len(outside)), dict[str, float]()
        for names in outside:
            _copy(names, tensors, checkpoint)
        blocks = _blocks(config, tensors, pieces, work, settings.device, news)
        for index in range(config.layers):
            block = next(blocks)
            checkpoint.add(_stored(block, f"model.layers.{index}.", tensors, recipe.scale_dtype))
            errors |= {f"model.layers.{index}.{name}": error for name, error in block.errors.items()}
            del block  # before the next one is read
        checkpoint.finish(folder, raw, quantization_config(recipe))
        return Quantized(
            linears=config.layers * len(LINEARS),
            before_bytes=sum(each.nbytes for each in tensors.stored.values()),
            after_bytes=checkpoint.nbytes,
            errors=errors,
            calibration_tokens=0 if pieces is None else pieces.numel(),
            seconds=time.monotonic() - began,
        )


def _source_config(folder: Path) -> dict[str, Any]:
    if gguf_in(folder) is not None:
        raise UnsupportedModel(f"{folder} holds a GGUF file: quantize the safetensors that it was made of")
    raw = read_json(folder, CONFIG)
    architecture = architecture_of(raw)
    if architecture not in PARSERS:
        raise UnsupportedModel(f"{architecture} cannot be quantized; {', '.join(sorted(PARSERS))} can")
    if layout_of(raw) is not None:
        raise UnsupportedModel(f"{folder} is quantized already: start from the plain checkpoint")
    return raw


def _check_whole(tensors: Tensors, raw: dict[str, Any]) -> None:
    """Before the first hour is spent. The model has shapes, and no memory."""
    nowhere = torch.device("meta")
    model = Llama(raw, max_model_len=2, dtype=torch.float32, device=nowhere, operators=Operators(attend_sdpa))
    check_whole(tensors, model.destinations(), model.ignored_suffixes)


def _recipe(settings: QuantizeSettings, config: LlamaConfig, tensors: Tensors) -> Recipe:
    name = "model.layers.0.mlp.down_proj.weight"
    stored = tensors.stored.get(name)
    if stored is None or stored.dtype not in _DTYPES:
        raise ModelError(f"tensor {name!r} is {'missing' if stored is None else stored.dtype}; it must be {', '.join(_DTYPES)}")
    symmetric = settings.method != "awq" if settings.symmetric is None else settings.symmetric
    if settings.to != "int4":
        return Recipe(to=settings.to, group_size=None, symmetric=True, scale_dtype=_DTYPES[stored.dtype])
    for inputs in (config.hidden, config.heads * config.head_dim, config.intermediate):
        if inputs % 8 or (settings.group_size != -1 and inputs % settings.group_size):
            fits = next((size for size in (128, 64, 32, 16, 8) if inputs % size == 0), None)
            instead = "int4 does not fit this model" if fits is None else f"--group-size {fits} does"
            raise ConfigError(f"--group-size {settings.group_size} does not divide the {inputs} inputs of a linear: {instead}")
    group_size = None if settings.group_size == -1 else settings.group_size
    return Recipe(to="int4", group_size=group_size, symmetric=symmetric, scale_dtype=_DTYPES[stored.dtype])


def _blocks(
    config: LlamaConfig, tensors: Tensors, pieces: Tensor | None, work: Work, device_name: str, news: News
) -> Iterator[QuantizedBlock]:
    device, total = torch.device(device_name), config.layers * len(LINEARS)
    length = 1 if pieces is None else pieces.shape[1]
    rotary = rotary_table(config.head_dim, length, config.rope, max_position=config.max_position, dtype=torch.float32, device=device)

    def told(index: int, name: str) -> None:
        news(index * len(LINEARS) + LINEARS.index(name) + 1, total, f"model.layers.{index}.{name}")

    hidden = None if pieces is None else _embedded(tensors, pieces, device)
    return quantized_blocks(config, tensors, hidden, rotary, work, told)


def _embedded(tensors: Tensors, pieces: Tensor, device: torch.device) -> list[Tensor]:
    """Batches of [B, S, E] float32."""
    embedding = tensors.read("model.embed_tokens.weight")
    at_once = max(_TOKENS_AT_ONCE // pieces.shape[1], 1)
    hidden = [embedding[batch].to(device, torch.float32) for batch in torch.split(pieces, at_once)]
    tensors.give_back(embedding)
    return hidden


def _outside_blocks(tensors: Tensors) -> list[list[str]]:
    """Names by shard: a table each, embedding and head being as large as blocks; the small ones with the first."""
    outside = [name for name in tensors.stored if not name.startswith("model.layers.")]
    tables = [[name] for name in outside if len(tensors.stored[name].shape) > 1] or [[]]
    tables[0] += [name for name in outside if len(tensors.stored[name].shape) <= 1]
    return tables


def _copy(names: list[str], tensors: Tensors, checkpoint: Checkpoint) -> None:
    read = {name: tensors.read(name) for name in names}
    checkpoint.add(read)
    for tensor in read.values():
        tensors.give_back(tensor)


def _stored(block: QuantizedBlock, prefix: str, tensors: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    plain = {f"{prefix}{name}": tensor.to(_DTYPES[tensors.stored[f"{prefix}{name}"].dtype]) for name, tensor in block.plain.items()}
    for name, weight in block.weights.items():
        plain |= layout(f"{prefix}{name}", weight, dtype)
    return plain
