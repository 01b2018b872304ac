"""Random LoRA adapters of the small models as PEFT folders, and the same models with them merged by hand: W + B A alpha / r."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
GPT2_ALL = ("c_attn", "c_proj", "c_fc")


def write_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    targets: tuple[str, ...] = ALL,
    rslora: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **more: Any,
) -> Path:
    """As PEFT saves one. `more`: further fields of adapter_config.json."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, (out, size) in _targets(base, targets).items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, size, generator=generator).mul(size**-0.5).to(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator).mul(0.1).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": list(targets),
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.1,
        **more,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merge(base: Path, adapter: Path, into: Path) -> Path:
    """A checkpoint whose weights have the adapter in them."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    tensors, added = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name, a in added.items():
        if not name.endswith("lora_A.weight"):
            continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        delta = added[name.replace("lora_A", "lora_B")] @ a * scale
        weight = tensors[f"{module}.weight"]
        tensors[f"{module}.weight"] = weight + (delta if weight.shape == delta.shape and "c_" not in module else delta.T)
    shutil.copytree(base, into)
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    return into


def _targets(base: Path, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Module → (outputs, inputs). GPT-2 stores its matrices transposed."""
    shapes = {name.removesuffix(".weight"): each.shape for name, each in load_file(base / "model.safetensors").items()}
    found = {name: shape for name, shape in shapes.items() if name.rsplit(".", 1)[-1] in targets and len(shape) == 2}
    return {name: (shape[1], shape[0]) if ".c_" in name else (shape[0], shape[1]) for name, shape in found.items()}
