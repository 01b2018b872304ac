"""Random small models of every architecture and the engine around them."""

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine

logging.disable_progress_bar()
VOCAB = 160
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.15,
}
"""A wide initial range keeps the two most likely tokens far apart, so that greedy ids do not hang on rounding."""


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SMALL_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.15,
}


def write_checkpoint(folder: Path, *, model_type: str = "llama", seed: int = 0, shard_size: str = "1GB", **differences: Any) -> None:
    """As transformers saves one: config.json, safetensors, generation_config.json."""
    torch.manual_seed(seed)
    small = SMALL_GPT2 if model_type == "gpt2" else SMALL
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**small, **differences})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or ".ln_" in name:
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
    model.save_pretrained(folder, max_shard_size=shard_size)


def small_engine(folder: Path, **settings: Any) -> Engine:
    defaults: dict[str, Any] = {"device": "cpu", "max_running": 16, "max_batch_tokens": 512}
    return Engine(EngineConfig(model_dir=folder, **{**defaults, **settings}))


def kv_bytes(blocks: int, block_size: int = 16, *, layers: int = 2, kv_heads: int = 2, head_dim: int = 16, itemsize: int = 4) -> int:
    """Room for exactly so many blocks of the small Llama in float32."""
    return blocks * block_size * layers * 2 * kv_heads * head_dim * itemsize
