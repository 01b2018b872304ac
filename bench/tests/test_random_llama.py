"""The int8 checkpoint that a peer reads: the same model, each linear off by at most half a step."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pagoda_bench.random_llama import write_int8


def test_linears_are_rounded_and_all_else_stays(tmp_path: Path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    write_int8(tmp_path / "plain", tmp_path / "int8")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "int8"))
    rounded = {name for name, tensor in after.items() if tensor.dtype == torch.int8}
    assert len(rounded) == 7
    for name, tensor in before.items():
        if name in rounded:
            scales = after[f"{name}_scale"].float()
            assert torch.all((after[name].float() * scales - tensor.float()).abs() <= scales * 0.51 + tensor.float().abs() / 256)
        else:
            assert torch.equal(after[name], tensor)
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "int-quantized"
