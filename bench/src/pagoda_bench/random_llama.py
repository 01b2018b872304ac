"""Writes an ordinary Hugging Face folder of a Llama with random weights: a model of a given size to time, without a download.

The tokenizer is byte-level with filler entries up to the vocabulary's size, so that every id decodes to some text.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

_EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
COMPRESSED_INT8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_EIGHT_BITS, "strategy": "channel", "dynamic": False},
            "input_activations": {**_EIGHT_BITS, "strategy": "token", "dynamic": True},
        }
    },
}


def write_half_billion(folder: Path, *, seed: int = 0) -> None:
    """The 0.45B Llama of the first figures: hidden 1024, 24 layers, 16 heads, 8 KV heads, intermediate 4096, vocabulary 32 000, untied,
    bf16. A folder that is already complete is left alone."""
    config = LlamaConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=4096,
        vocab_size=32_000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=31_999,
        dtype="bfloat16",
    )
    _write(config, folder, seed)


def write_tenth_billion(folder: Path, *, seed: int = 0) -> None:
    """0.1B: hidden 768, 12 layers, 12 heads, 4 KV heads, intermediate 3072, vocabulary 4096, untied, bf16: a step takes one core 20 ms, so
    that what is around the engine takes little of a request's time. A folder that is already complete is left alone."""
    config = LlamaConfig(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=3072,
        vocab_size=4096,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=4095,
        dtype="bfloat16",
    )
    _write(config, folder, seed)


def _write(config: LlamaConfig, folder: Path, seed: int) -> None:
    if (folder / "tokenizer_config.json").exists():
        return
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_filler_tokenizer(folder, config.vocab_size)


def write_int8(source: Path, folder: Path) -> None:
    """The folder again as compressed-tensors has it: linears in int8, rounded to nearest with a scale per output, for activations that are
    quantized per token; the head stays. A folder that is already complete is left alone."""
    weights = folder / "model.safetensors"
    if weights.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for each in source.iterdir():
        if each.suffix == ".json" and each.name != "model.safetensors.index.json":
            shutil.copy(each, folder / each.name)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": COMPRESSED_INT8}))
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            if name.endswith("_proj.weight"):
                scales = tensor.float().abs().amax(dim=1, keepdim=True).div(127).clamp(min=1e-12).bfloat16()
                tensors[name] = (tensor.float() / scales.float()).round().clamp(-127, 127).to(torch.int8)
                tensors[f"{name}_scale"] = scales
            else:
                tensors[name] = tensor
    partial = folder / "model.partial"
    save_file(tensors, partial)
    partial.rename(weights)


def write_filler_tokenizer(folder: Path, vocab_size: int) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {f"w{i}": i for i in range(len(letters), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
