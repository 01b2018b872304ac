"""A PEFT folder of one LoRA adapter (adapter_config.json, adapter_model.safetensors) → A and B of the model's linears, ready to be copied.

Refuses, with one sentence that names the field or the tensor, whatever the engine would compute wrongly. Knows the model only by the
shapes of its adaptable linears. Called by the directory of adapters, from any thread.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagoda_worker.errors import AdapterError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "task_type": ("CAUSAL_LM", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mixed"),
}
"""The other ways to initialise change the base model's weights too."""
_READ = frozenset({"r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "layers_pattern", "exclude_modules"})
_SAYS_NOTHING = frozenset(
    {"base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "fan_in_fan_out", "auto_mapping", "peft_version",
     "loftq_config", "eva_config", "corda_config", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"}
)  # fmt: skip
"""Of training, or of where it came from. fan_in_fan_out tells how the base weight lies; A and B lie alike."""


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Of one name that an adapter may target."""

    size: int
    """Inputs."""
    out: int


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """On the host, in the model's dtype (pinned next to a GPU)."""

    rank: int
    version: str
    """16 hexadecimal digits of a hash over what was read."""
    nbytes: int
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    """Module → A [r, in], and B transposed [r, out], times the scale."""


def read_adapter(
    folder: Path, shapes: Mapping[str, LinearShape], *, optional_prefix: str, max_rank: int, dtype: torch.dtype, pin: bool
) -> AdapterWeights:
    """`shapes`: of all names that may be targeted. Raises AdapterError."""
    config = _read_config(folder)
    rank, scale = _rank_and_scale(folder / CONFIG, config, max_rank)
    path = folder / TENSORS
    pairs: dict[str, dict[str, Tensor]] = {}
    try:
        digest = hashlib.sha256(repr((rank, scale)).encode() + path.read_bytes())
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                module, side = _place(path, name, shapes, optional_prefix)
                pairs.setdefault(module, {})[side] = _checked(path, name, side, file.get_tensor(name), shapes[module], rank)
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist: an adapter is a PEFT folder with {CONFIG} and {TENSORS}") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    _check_complete(path, config, pairs, shapes)
    ready = {module: _ready(sides["A"], sides["B"], scale, dtype, pin=pin) for module, sides in pairs.items()}
    _check_finite(path, ready, dtype)
    nbytes = sum(a.nbytes + b.nbytes for a, b in ready.values())
    return AdapterWeights(rank, digest.hexdigest()[:16], nbytes, ready)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path} does not exist: an adapter is a PEFT folder with {CONFIG} and {TENSORS}") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} must hold a JSON object")
    for field, value in config.items():
        if field in _MUST_BE:
            if value not in _MUST_BE[field]:
                raise AdapterError(f"{path}: {field} is {json.dumps(value)}; served is {json.dumps(_MUST_BE[field][0])} only")
        elif value and field not in _READ and field not in _SAYS_NOTHING:
            raise AdapterError(f"{path}: {field} is {json.dumps(value)}; this engine computes plain LoRA only: train it without {field}")
    if "peft_type" not in config:
        raise AdapterError(f'{path}: peft_type is missing; served is "LORA" only')
    return config


def _rank_and_scale(path: Path, config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= max_rank:
        raise AdapterError(f"{path}: r is {json.dumps(rank)}; this worker takes ranks of 1 to {max_rank} (spec.engine.adapters.maxRank)")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterError(f"{path}: lora_alpha is {json.dumps(alpha)}; it must be a number")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _place(path: Path, name: str, shapes: Mapping[str, LinearShape], optional_prefix: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise AdapterError(f"{path}: tensor {name!r} is none of plain LoRA (lora_A.weight, lora_B.weight of a linear)")
    module = match["module"].removeprefix(optional_prefix)
    if module not in shapes:
        targets = ", ".join(sorted({each.rsplit(".", 1)[1] for each in shapes}))
        raise AdapterError(f"{path}: tensor {name!r} targets {module.rsplit('.', 1)[-1]} at a place that cannot be adapted; {targets} can")
    return module, match["side"]


def _checked(path: Path, name: str, side: str, tensor: Tensor, shape: LinearShape, rank: int) -> Tensor:
    wanted = (rank, shape.size) if side == "A" else (shape.out, rank)
    if tuple(tensor.shape) != wanted:
        raise AdapterError(f"{path}: tensor {name!r} has shape {list(tensor.shape)}, this model and r {rank} ask for {list(wanted)}")
    if not tensor.is_floating_point():
        raise AdapterError(f"{path}: tensor {name!r} is {str(tensor.dtype).removeprefix('torch.')}; it must be of floating point")
    return tensor


def _check_complete(
    path: Path, config: Mapping[str, Any], pairs: Mapping[str, Mapping[str, Tensor]], shapes: Mapping[str, LinearShape]
) -> None:
    """Each A has its B, and each layer what target_modules promises."""
    for module, sides in sorted(pairs.items()):
        for side in "AB":
            if side not in sides:
                raise AdapterError(f"{path}: tensor 'base_model.model.{module}.lora_{side}.weight' is missing")
    if not pairs:
        raise AdapterError(f"{path} holds no tensor")
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return  # a pattern, or not told: the tensors decide
    for target in targets:
        if not any(_names(module, target) for module in shapes):
            can = ", ".join(sorted({each.rsplit(".", 1)[1] for each in shapes}))
            raise AdapterError(f"{path.with_name(CONFIG)}: target_modules holds {json.dumps(target)}; {can} can be adapted")
    if config.get("layers_to_transform") is None and not config.get("exclude_modules"):
        _check_every_layer(path, targets, pairs, shapes)


def _check_every_layer(path: Path, targets: Sequence[str], pairs: Mapping[str, object], shapes: Mapping[str, LinearShape]) -> None:
    for module in shapes:
        if module not in pairs and any(_names(module, target) for target in targets):
            raise AdapterError(f"{path}: tensor 'base_model.model.{module}.lora_A.weight' is missing, target_modules promises it")


def _check_finite(path: Path, ready: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype) -> None:
    """As they will be multiplied: kernels give rows of other adapters zeros, and zero times infinity is no zero."""
    for module, pair in ready.items():
        for side, tensor in zip("AB", pair, strict=True):
            if not bool(torch.isfinite(tensor).all()):
                name = f"base_model.model.{module}.lora_{side}.weight"
                raise AdapterError(f"{path}: tensor {name!r} holds a value that is not finite in {str(dtype).removeprefix('torch.')}")


def _names(module: str, target: object) -> bool:
    """As PEFT reads a list: the whole name, or its last components."""
    return module == target or module.endswith(f".{target}")


def _ready(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype, *, pin: bool) -> tuple[Tensor, Tensor]:
    first, second = a.to(dtype).clone(), (b.float().T * scale).to(dtype).contiguous()
    return (first.pin_memory(), second.pin_memory()) if pin else (first, second)
