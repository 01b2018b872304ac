"""Writes LoRA adapters of a Llama folder as PEFT does, with random weights: adapters of a given rank to time, without training.

Numbers are small unless told, so that outputs stay finite. A folder that is already complete is left alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_adapters(model: Path, folder: Path, *, count: int, rank: int, targets: Sequence[str], scale: float = 0.01) -> dict[str, Path]:
    """Name → folder. `scale`: of B's numbers; A keeps its input's size."""
    names = {f"adapter-{i}": i for i in range(count)}
    return {name: _write(model, folder / name, rank=rank, targets=targets, scale=scale, seed=i) for name, i in names.items()}


def _write(model: Path, folder: Path, *, rank: int, targets: Sequence[str], scale: float, seed: int) -> Path:
    if (folder / "adapter_config.json").exists():
        return folder
    config = json.loads((model / "config.json").read_text())
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(config["num_hidden_layers"]):
        for name, (out, size) in _shapes(config).items():
            if name.rsplit(".", 1)[1] in targets:
                prefix = f"base_model.model.model.layers.{layer}.{name}"
                tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, size, generator=generator).mul(size**-0.5).bfloat16()
                tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, rank, generator=generator).mul(scale).bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(targets),
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def _shapes(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) by name within a layer."""
    hidden, columns = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (columns, hidden),
        "mlp.up_proj": (columns, hidden),
        "mlp.down_proj": (hidden, columns),
    }
