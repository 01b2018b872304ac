"""GGUF folders: written by the package `gguf` (llama.cpp's own), computed by the engine, and what is wrong said with file and tensor."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from logits_tap import Truth, logits_of
from random_checkpoint import small_engine
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.models.checkpoint import checkpoint_bytes, read_config
from pagoda_worker.models.formats.gguf_config import llama3_rope
from pagoda_worker.models.formats.gguf_file import GgufFile
from pagoda_worker.models.registry import footprint_as_stored
from pagoda_worker.settings.sources import resolve_source

Checkpoint = Callable[..., Path]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LINEAR = gguf.GGMLQuantizationType
CASES: dict[str, tuple[dict[str, Any], str, gguf.GGMLQuantizationType]] = {
    "llama in F32": ({}, "llama", LINEAR.F32),
    "llama in F16": ({}, "llama", LINEAR.F16),
    "llama in Q4_0": ({}, "llama", LINEAR.Q4_0),
    "llama in Q8_0": ({"attention_bias": True}, "llama", LINEAR.Q8_0),
    "llama in Q5_1": ({"tie_word_embeddings": True}, "llama", LINEAR.Q5_1),
    "qwen2 in Q4_1": ({"model_type": "qwen2", "tie_word_embeddings": True}, "qwen2", LINEAR.Q4_1),
    "qwen3 in Q4_0": ({"model_type": "qwen3", "head_dim": 32}, "qwen3", LINEAR.Q4_0),
}


def own_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def in_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(plain: Path, folder: Path, architecture: str, kind: gguf.GGMLQuantizationType, *, meant: Path) -> Path:
    """The file, and the plain folder of what it means."""
    raw, tensors = json.loads((plain / "config.json").read_text()), load_file(plain / "model.safetensors")
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", architecture)
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_key_length(raw.get("head_dim", 16))
    writer.add_rope_dimension_count(raw.get("head_dim", 16))
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(raw["rope_parameters"]["rope_theta"])
    writer.add_token_list([f"t{i}" for i in range(raw["vocab_size"])])
    writer.add_eos_token_id(1)
    for name, tensor in tensors.items():
        own, weight = own_name(name), tensor.numpy()
        heads = {"attn_q": raw["num_attention_heads"], "attn_k": raw["num_key_value_heads"]}.get(own.split(".")[-2])
        turned = in_pairs(weight, heads) if architecture == "llama" and heads else weight
        if weight.ndim == 2 and kind != LINEAR.F32:
            blocks = gguf.quantize(np.ascontiguousarray(turned), kind)
            writer.add_tensor(own, blocks, raw_dtype=kind)
            tensors[name] = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, kind), kind).astype(np.float32))
        else:
            writer.add_tensor(own, np.ascontiguousarray(turned))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    copytree(plain, meant)
    save_file(tensors, meant / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def written(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("gguf")

    def write(name: str) -> tuple[Path, Path]:
        differences, architecture, kind = CASES[name]
        folder, meant = root / name, root / f"{name}, plain"
        if not folder.exists():
            write_gguf(checkpoint(f"for {name}", **differences), folder, architecture, kind, meant=meant)
        return folder, meant

    return write


@pytest.mark.parametrize("name", CASES)
def test_its_logits_are_those_of_the_numbers_it_means(written: Callable[[str], tuple[Path, Path]], name: str):
    folder, meant = written(name)
    engine = small_engine(folder, dtype="fp32")
    with logits_of(engine) as seen:
        engine.generate([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]], max_tokens=5, ignore_eos=True)
    assert Truth(meant).worst_difference(seen) < (0.3 if "Q4_0" in name else 5e-5), "a CPU's int4 rounds its inputs too"
    assert engine.facts.eos_token_ids == [1]
    assert engine.facts.checkpoint_bytes == checkpoint_bytes(folder) == (folder / "model.gguf").stat().st_size


def test_transformers_reads_the_same_numbers(written: Callable[[str], tuple[Path, Path]]):
    """So that the rows are turned here as they are in published files."""
    folder, meant = written("llama in F32")
    model = AutoModelForCausalLM.from_pretrained(meant)
    theirs = load_gguf_checkpoint(str(folder / "model.gguf"), return_tensors=True, model_to_load=model)["tensors"]
    for name, tensor in load_file(meant / "model.safetensors").items():
        torch.testing.assert_close(theirs[name].float(), tensor)


def test_memory_is_planned_by_what_is_held(written: Callable[[str], tuple[Path, Path]]):
    folder, _ = written("llama in Q4_0")
    size = footprint_as_stored(folder, read_config(folder), 2)
    assert size.weight_bytes(2) < 0.45 * 2 * size.parameters
    plain, _ = written("llama in Q8_0")
    size = footprint_as_stored(plain, read_config(plain), 2)
    assert size.weight_bytes(2) == 2 * size.parameters, "those are held plain"


def test_a_file_may_be_named_when_it_is_alone_in_its_folder(written: Callable[[str], tuple[Path, Path]], tmp_path: Path):
    folder = Path(copytree(written("llama in F16")[0], tmp_path / "model"))
    assert resolve_source(f"file://{folder}/model.gguf") == resolve_source(str(folder)) == folder
    (folder / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"other.gguf is beside it; put the file and its tokenizer.json into a folder of their own"):
        resolve_source(f"file://{folder}/model.gguf")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files: put the one to serve into a folder of its own"):
        read_config(folder)


def test_scaled_frequencies_are_recognised_as_those_of_llama_3():
    """Values as convert_hf_to_gguf.py computes them for Llama 3.1."""
    file = GgufFile(Path("model.gguf"), {}, {})
    base, dim, factor, low, high, old = 500_000.0, 128, 8.0, 1.0, 4.0, 8192
    factors = []
    for frequency in 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wavelength = 2 * torch.pi / frequency
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(float(1 / ((1 - smooth) / factor + smooth)))
    assert llama3_rope(torch.tensor(factors), base, file)["factor"] == 8.0
    with pytest.raises(UnsupportedModel, match=r"model.gguf: tensor 'rope_freqs.weight' scales rotary frequencies as no Llama 3 does"):
        llama3_rope(torch.tensor(factors) * 1.5, base, file)


BREAKS: dict[str, tuple[Callable[[bytes], bytes], type[Exception], str]] = {
    "another file": (lambda b: b"GGML" + b[4:], ModelError, "is no GGUF file: it does not begin with GGUF"),
    "version 1": (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], UnsupportedModel, "version 1 of GGUF is not supported; 2 and 3 are"),
    "a number for the other end": (lambda b: b[:4] + b[7:3:-1] + b[8:], UnsupportedModel, r"version \d+ of GGUF is not supported"),
    "cut in the header": (lambda b: b[:200], ModelError, "its header ends after 200 bytes: it is cut short; fetch it again"),
    "cut in a tensor": (
        lambda b: b[:-3000],
        ModelError,
        r"tensor '[\w.]+' ends at byte \d+, the file has \d+: it is cut short; fetch it again",
    ),
    "empty": (lambda b: b"", ModelError, "is no GGUF file"),
    "a count that is none": (lambda b: b[:8] + b"\xff" * 8 + b[16:], ModelError, r"a count of \d+ in its header; the file is damaged"),
    "an unknown architecture": (lambda b: b.replace(b"llama", b"rwkv6", 1), ModelError, "rwkv6"),
    "an unknown tensor": (
        lambda b: b.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"),
        ModelError,
        "tensor 'blk.0.attn_x.weight' has no place in this architecture",
    ),
    "no embedding": (lambda b: b.replace(b"token_embd.weight", b"token_embx.weight"), ModelError, "tensor 'token_embd.weight' is missing"),
    "a value missing": (
        lambda b: b.replace(b"llama.block_count", b"llama.block_coun_"),
        ModelError,
        "its metadata has no llama.block_count",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_what_is_wrong_with_a_file_is_one_sentence(written: Callable[[str], tuple[Path, Path]], tmp_path: Path, case: str):
    break_it, error, sentence = BREAKS[case]
    folder = Path(copytree(written("llama in F16")[0], tmp_path / "model"))
    (folder / "model.gguf").write_bytes(break_it((folder / "model.gguf").read_bytes()))
    with pytest.raises(error, match=rf"model.gguf.*{sentence}"):
        small_engine(folder)


def test_a_tensor_of_another_shape_is_refused(written: Callable[[str], tuple[Path, Path]], tmp_path: Path):
    folder = Path(copytree(written("llama in F16")[0], tmp_path / "model"))
    path = folder / "model.gguf"
    key = b"llama.feed_forward_length"
    content = path.read_bytes()
    at = content.index(key) + len(key) + 4
    path.write_bytes(content[:at] + struct.pack("<I", 128) + content[at + 4 :])
    with pytest.raises(ModelError, match=r"tensor 'model.layers.0.mlp.gate_proj.weight' has shape .*, config.json asks for \[128, 64\]"):
        small_engine(folder)
