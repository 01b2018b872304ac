"""Adapters that would be computed wrongly, and settings that exclude them, are refused with what is wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_adapter import write_adapter
from random_checkpoint import small_engine
from safetensors.torch import load_file, save_file

from pagoda_worker.errors import AdapterError, ConfigError

Checkpoint = Callable[..., Path]

REFUSED = [
    ({"use_dora": True}, "use_dora is true; this engine computes plain LoRA only"),
    ({"bias": "all"}, 'bias is "all"; served is "none" only'),
    ({"modules_to_save": ["lm_head"]}, r'modules_to_save is \["lm_head"\]; this engine computes plain LoRA only'),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
    ({"peft_type": "IA3"}, 'peft_type is "IA3"; served is "LORA" only'),
    ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa"'),
    ({"r": 65}, r"r is 65; this worker takes ranks of 1 to 64 \(spec.engine.adapters.maxRank\)"),
    ({"lora_alpha": "8"}, 'lora_alpha is "8"; it must be a number'),
    ({"r": 5}, r"lora_A.weight' has shape \[4, 64\], this model and r 5 ask for \[5, 64\]"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, 'target_modules holds "embed_tokens"; down_proj, gate_proj'),
    ({"target_modules": ["q_proj", "k_proj"]}, r"tensor 'base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight' is missing"),
]


@pytest.mark.parametrize(("fields", "sentence"), REFUSED, ids=lambda each: next(iter(each)) if isinstance(each, dict) else "")
def test_what_would_be_computed_wrongly_is_refused_with_the_field_or_tensor(
    checkpoint: Checkpoint, tmp_path: Path, fields: dict[str, Any], sentence: str
):
    base = checkpoint("untied")
    engine = small_engine(base)
    with pytest.raises(AdapterError, match=sentence):
        engine.adapters.load("bad", write_adapter(tmp_path / "bad", base, targets=("q_proj",), **fields))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_adapter_with_a_value_that_is_no_number_is_refused_with_its_tensor(checkpoint: Checkpoint, tmp_path: Path, value: float):
    """Beside other rows it could reach them: zero times infinity is no zero."""
    base = checkpoint("untied")
    folder, engine = write_adapter(tmp_path / "bad", base), small_engine(base)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(each for each in tensors if each.endswith("0.mlp.up_proj.lora_B.weight"))
    tensors[name][3, 1] = value
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=rf"tensor '{name}' holds a value that is not finite in float32"):
        engine.adapters.load("bad", folder)


def test_a_file_that_is_cut_short_or_missing_is_refused(checkpoint: Checkpoint, tmp_path: Path):
    base = checkpoint("untied")
    folder, engine = write_adapter(tmp_path / "cut", base), small_engine(base)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors cannot be read"):
        engine.adapters.load("cut", folder)
    shutil.rmtree(folder)
    with pytest.raises(AdapterError, match=r"adapter_config.json does not exist: an adapter is a PEFT folder"):
        engine.adapters.load("gone", folder)
    assert engine.adapters.facts() == []


def test_an_adapter_of_the_settings_that_cannot_be_read_ends_the_start(checkpoint: Checkpoint, tmp_path: Path):
    with pytest.raises(AdapterError, match=r"adapter 'sql': .*does not exist"):
        small_engine(checkpoint("untied"), adapters={"sql": tmp_path / "nothing"})


@pytest.mark.parametrize("settings", [{"compile": True}, {"batch_invariant": True}, {"adapter_slots": 0}], ids=str)
def test_settings_that_exclude_adapters_say_so(checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="adapters"):
        small_engine(checkpoint("untied"), adapters={"sql": tmp_path}, **settings)
