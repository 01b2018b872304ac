"""Quantized weights → a folder in the layouts of compressed-tensors, which this engine, vLLM and transformers read.

Owns the folder while it is written: beside its final place under a name of its own, which it gets at the end, whole or not at all. One
safetensors file a block, so that memory holds no more. What the layouts are: models/formats/compressed_tensors.py.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pagoda_worker.errors import ConfigError
from pagoda_worker.models.files import CONFIG, INDEX
from pagoda_worker.quantization.grid import Recipe
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight, QuantizedWeight

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends, and nothing when it fails. Raises ConfigError."""
    if out.exists():
        raise ConfigError(f"--out {out} is there already: name a new folder, or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}") from error
    try:
        yield work
        work.chmod(0o755)
        work.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Checkpoint:
    """Shards into a folder, and what names them."""

    def __init__(self, folder: Path, shards: int) -> None:
        self._folder, self._shards, self._places, self.nbytes = folder, shards, dict[str, str](), 0

    def add(self, tensors: dict[str, Tensor]) -> None:
        """The next shard."""
        number = len(set(self._places.values())) + 1
        name = f"model-{number:05}-of-{self._shards:05}.safetensors"
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, self._folder / name, {"format": "pt"})
        (self._folder / name).chmod(0o644)  # safetensors leaves them to the owner alone, and workers run as another user
        self._places |= dict.fromkeys(tensors, name)
        self.nbytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, source: Path, raw: dict[str, Any], quantization: dict[str, Any]) -> None:
        """Index, config.json, and whatever `source` has beside weights: tokenizer, templates, licences."""
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": self._places}
        (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        (self._folder / CONFIG).write_text(json.dumps({**raw, "quantization_config": quantization}, indent=2) + "\n")
        for file in source.iterdir():
            if file.is_file() and file.name not in (CONFIG, INDEX) and file.suffix not in _WEIGHTS and not file.name.startswith("."):
                shutil.copyfile(file, self._folder / file.name)


def layout(name: str, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors of module `name`; scales in `dtype`, which they were made for."""
    match weight:
        case Int8Weight():
            parts = {"weight": weight.values, "weight_scale": weight.scales[:, None].to(dtype)}
        case Int4Weight():
            assert weight.order is None, "our own have none"
            parts = {
                "weight_packed": weight.values.contiguous().view(torch.int32),  # the same order of nibbles, on machines of this age
                "weight_scale": weight.scales.to(dtype),
                "weight_shape": torch.tensor(weight.shape),
            }
            if weight.zeros is not None:
                parts["weight_zero_point"] = _packed_outputs(weight.zeros)
        case Fp8Weight():
            parts = {"weight": weight.values, "weight_scale": weight.scales.to(dtype)}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def _packed_outputs(zeros: Tensor) -> Tensor:
    """[out, groups] uint8 → [out / 8, groups] int32, the first output in the lowest bits."""
    padded = F.pad(zeros.to(torch.int32), (0, 0, 0, -len(zeros) % 8))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=zeros.device)
    return (padded.view(-1, 8, zeros.shape[1]) << shifts[:, None]).sum(dim=1, dtype=torch.int32)


def quantization_config(recipe: Recipe) -> dict[str, Any]:
    """As compressed-tensors writes it; lm_head stays plain."""
    activations = {"type": "float" if recipe.to == "fp8" else "int", "strategy": "token"}
    weights: dict[str, Any] = {"num_bits": 4 if recipe.to == "int4" else 8, "type": activations["type"]}
    weights |= {"symmetric": recipe.symmetric, "strategy": "group" if recipe.group_size else "channel", "group_size": recipe.group_size}
    group = {
        "targets": ["Linear"],
        "weights": {**weights, "dynamic": False},
        "input_activations": None if recipe.to == "int4" else {**activations, "num_bits": 8, "symmetric": True, "dynamic": True},
        "output_activations": None,
    }
    formats = {"int4": "pack-quantized", "int8": "int-quantized", "fp8": "float-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": formats[recipe.to],
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }
