"""Reading checkpoints: what is loaded, and how a folder that cannot be served says so."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from random_checkpoint import small_engine
from safetensors.torch import load_file, save_file

import pagoda_worker
from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.models.checkpoint import stored_dtype
from pagoda_worker.models.files import open_safetensors
from pagoda_worker.models.weights import load_weights

Checkpoint = Callable[..., Path]


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(copytree(checkpoint(), tmp_path / "model"))


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def read_into(folder: Path, destinations: dict[str, torch.Tensor], **settings: Any) -> None:
    with open_safetensors(folder) as tensors:
        load_weights(tensors, destinations, **settings)


def test_a_sharded_checkpoint_is_the_same_model(checkpoint: Checkpoint):
    sharded = checkpoint("sharded", shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    prompt = [[3, 1, 4, 1, 5, 9]]
    one, many = (small_engine(folder).generate(prompt, max_tokens=8, ignore_eos=True) for folder in (checkpoint(), sharded))
    assert one[0].token_ids == many[0].token_ids


def test_tensors_are_copied_into_the_destinations_and_converted(checkpoint: Checkpoint):
    name = "model.norm.weight"
    stored = load_file(checkpoint() / "model.safetensors")
    destinations = {key: torch.empty(value.shape, dtype=torch.bfloat16) for key, value in stored.items()}
    read_into(checkpoint(), destinations)
    assert torch.equal(destinations[name], stored[name].bfloat16())


BREAKS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ModelError, r"config.json does not exist: .* is not a Hugging Face model folder"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), ModelError, "config.json cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), ModelError, "must hold a JSON object"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelError, "holds neither model.safetensors nor"),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ModelError,
        "holds pytorch_model.bin, a pickle that could run code of its own and is never read: save it as safetensors",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        ModelError,
        "model.safetensors cannot be read",
    ),
    "weights cut short, in a tensor": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        ModelError,
        r"model.safetensors cannot be read: tensor '[\w.]+' ends at byte \d+, the file has \d+: it is cut short; fetch it again",
    ),
    "a header that claims too much": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7 + b"\0" + (f / "model.safetensors").read_bytes()[8:]),
        ModelError,
        r"model.safetensors cannot be read: its header claims \d+ bytes, the file has \d+",
    ),
    "a tensor is missing": (
        lambda f: change_tensors(f, lambda t: t.pop("model.norm.weight")),
        ModelError,
        "tensor 'model.norm.weight' is missing",
    ),
    "a tensor too many": (
        lambda f: change_tensors(f, lambda t: t.update({"model.layers.0.extra": torch.zeros(1)})),
        ModelError,
        r"model.safetensors: tensor 'model.layers.0.extra' has no place",
    ),
    "another shape": (
        lambda f: change_tensors(f, lambda t: t.update({"model.norm.weight": torch.zeros(63)})),
        ModelError,
        r"'model.norm.weight' has shape \[63\], config.json asks for \[64\]",
    ),
    "unknown architecture": (
        lambda f: change_config(f, architectures=["MambaForCausalLM"]),
        UnsupportedModel,
        r"architecture 'MambaForCausalLM' is not supported; GPT2LMHeadModel, LlamaForCausalLM, .* are",
    ),
    "no architecture": (lambda f: change_config(f, architectures=None), ModelError, "architectures must name one class"),
    "quantized in a way we do not read": (
        lambda f: change_config(f, quantization_config={"quant_method": "bitsandbytes"}),
        UnsupportedModel,
        "quantization_config with quant_method 'bitsandbytes' is not supported; awq, compressed-tensors, .* are",
    ),
    "a dtype we do not serve": (lambda f: change_config(f, dtype="float64"), ModelError, "checkpoint dtype 'float64' is not served"),
    "broken index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        ModelError,
        "weight_map must map tensor names to file names",
    ),
    "index names a file that is not there": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'),
        ModelError,
        "gone.safetensors",
    ),
    "eos is text": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "</s>"}'),
        ModelError,
        "eos_token_id must be an integer or a list",
    ),
}


def test_nothing_in_the_worker_reads_pickles():
    sources = [path.read_text() for path in Path(pagoda_worker.__file__).parent.rglob("*.py")]
    assert len(sources) > 50
    assert not [line for text in sources for line in text.splitlines() if re.search(r"torch\.load\b|import pickle|weights_only", line)]


def test_the_facts_tell_how_much_was_read_and_in_what_time(checkpoint: Checkpoint):
    facts = small_engine(checkpoint()).facts
    assert facts.checkpoint_bytes == (checkpoint() / "model.safetensors").stat().st_size
    assert 0 < facts.weights_s < facts.load_s


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_many_pages_arrive_whole(tmp_path: Path, dtype: torch.dtype):
    """Pages are given back as soon as they were copied, between neighbours that share one."""
    torch.manual_seed(0)
    stored = {name: torch.randn(rows, 1000).to(dtype) for name, rows in (("a", 31), ("b", 1), ("c", 7), ("d", 120))}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    destinations = {name: torch.empty_like(tensor) for name, tensor in stored.items()}
    read_into(tmp_path, destinations)
    assert all(torch.equal(destinations[name], stored[name]) for name in stored)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_what_was_copied_does_not_stay_in_memory_as_part_of_the_file(tmp_path: Path):
    """64 MB in 8 tensors: without giving pages back all of the file would be resident at the end."""
    stored = {str(i): torch.full((1000, 2000), float(i)) for i in range(8)}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    before, seen = resident_file_bytes(), []
    read_into(tmp_path, stored, copied=lambda done, total: seen.append(resident_file_bytes() - before))
    assert len(seen) == 8
    assert max(seen) < 8e6, "one tensor's bytes"


def resident_file_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("name", BREAKS)
def test_a_folder_that_cannot_be_served_says_why(folder: Path, name: str):
    break_it, error, sentence = BREAKS[name]
    break_it(folder)
    with pytest.raises(error, match=sentence):
        small_engine(folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_model_len": 1000}, "maxModelLen is 1000; .* was trained for 256 positions"),
        ({"max_model_len": 256, "kv_cache_bytes": 64_000}, r"maxModelLen is 256; the KV cache holds \d+ tokens"),
        ({"kv_cache_bytes": 10}, "no memory for the KV cache: one block of 16 tokens needs 8192 bytes"),
        ({"max_running": 0}, "max_running is 0; it must be at least 1"),
        ({"max_model_len": 1}, "maxModelLen is 1"),
        ({"device": "cuda"}, "torch sees no CUDA device"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_say_why(checkpoint: Checkpoint, settings: dict[str, Any], sentence: str):
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=sentence):
        small_engine(checkpoint(), **settings)


def test_without_a_limit_the_context_is_what_the_cache_holds(checkpoint: Checkpoint):
    assert small_engine(checkpoint(), kv_cache_bytes=64_000).facts.max_model_len == 7 * 16


def test_dtype_auto_is_the_checkpoints_own_also_when_only_the_file_knows(checkpoint: Checkpoint, folder: Path):
    assert small_engine(checkpoint()).facts.dtype == "fp32"
    change_tensors(folder, lambda tensors: tensors.update({name: t.bfloat16() for name, t in tensors.items()}))
    assert stored_dtype(folder) == "BF16"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}))
    assert small_engine(folder).facts.dtype == "bf16"
    assert small_engine(folder, dtype="fp32").facts.dtype == "fp32"


def test_generation_config_knows_the_ending_ids_better(folder: Path):
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert small_engine(folder).facts.eos_token_ids == [7, 8]
    (folder / "generation_config.json").unlink()
    assert small_engine(folder).facts.eos_token_ids == [1]
