"""Folder and settings → a model on its device and the sizes everything else follows from.

Resolves every "auto" and None of EngineConfig, once. Called by the engine; knows no requests.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError, ModelError
from pagoda_worker.layers.attention import BACKENDS
from pagoda_worker.models.base import CacheShape, Model
from pagoda_worker.models.registry import architecture_of, load_model
from pagoda_worker.weights import checkpoint_bytes, read_json, stored_dtype

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEFAULT_BATCH_TOKENS = {"cuda": 8192, "cpu": 1024}
_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    model: Model
    architecture: str
    device: torch.device
    dtype_name: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    max_model_len: int
    max_batch_tokens: int
    block_count: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]


def load(config: EngineConfig) -> Loaded:
    """Raises ModelError, UnsupportedModel, ConfigError."""
    _check(config)
    folder = config.model_dir
    raw = read_json(folder, "config.json")
    architecture = architecture_of(raw)
    device = resolve_device(config.device)
    dtype_name = _resolve_dtype(config, raw, device)
    longest = raw.get("max_position_embeddings")
    if not isinstance(longest, int) or longest < 2:
        raise ModelError(f"{folder / 'config.json'}: max_position_embeddings must be an integer of at least 2, it is {longest!r}")
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"maxModelLen is {config.max_model_len}; {folder} was trained for {longest} positions: lower it to at most {longest}"
        )
    model_len = config.max_model_len or longest
    model = load_model(folder, raw, max_model_len=model_len, dtype=DTYPES[dtype_name], device=device, attend=BACKENDS[_attention(config)])
    block_count = _block_count(config, model.cache_shape, model_len, DTYPES[dtype_name].itemsize, device)
    if config.max_model_len is None:
        model_len = min(model_len, block_count * config.block_size)
    elif block_count * config.block_size < model_len:
        raise ConfigError(
            f"maxModelLen is {model_len}; the KV cache holds {block_count * config.block_size} tokens: "
            f"lower maxModelLen or give the worker more memory"
        )
    if device.type == "cpu":
        torch.set_num_threads(thread_count(config.threads or torch.get_num_threads(), checkpoint_bytes(folder)))
    eos, bos = _special_ids(folder, raw)
    return Loaded(
        model=model,
        architecture=architecture,
        device=device,
        dtype_name=dtype_name,
        eos_token_ids=eos,
        bos_token_id=bos,
        max_model_len=model_len,
        max_batch_tokens=config.max_batch_tokens or DEFAULT_BATCH_TOKENS[device.type],
        block_count=block_count,
    )


def _check(config: EngineConfig) -> None:
    for name, least in (("max_batch_tokens", 1), ("max_running", 1), ("block_size", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    if config.max_model_len is not None and config.max_model_len < 2:
        raise ConfigError(f"maxModelLen is {config.max_model_len}; a prompt and one output token need at least 2")


def resolve_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PAGODA_DEVICE is cuda, but torch sees no CUDA device: check the driver, or use auto or cpu")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def _attention(config: EngineConfig) -> str:
    return "sdpa" if config.attention == "auto" else config.attention


def _resolve_dtype(config: EngineConfig, raw: dict[str, Any], device: torch.device) -> str:
    if config.dtype != "auto":
        return config.dtype
    stored = raw.get("dtype") or raw.get("torch_dtype") or stored_dtype(config.model_dir)
    name = _NAMES.get(str(stored))
    if name is None:
        raise ModelError(f"{config.model_dir}: checkpoint dtype {stored!r} is not served; set dtype to one of {', '.join(DTYPES)}")
    if name == "fp32" and device.type == "cuda" and checkpoint_bytes(config.model_dir) > 1e9:
        return "bf16"
    return name


def _block_count(config: EngineConfig, shape: CacheShape, model_len: int, itemsize: int, device: torch.device) -> int:
    per_block = shape.bytes_per_token(itemsize) * config.block_size
    enough = config.max_running * -(-model_len // config.block_size)
    if config.kv_cache_bytes is not None:
        count = min(enough, config.kv_cache_bytes // per_block)
    elif device.type == "cuda":
        count = min(enough, int(0.9 * torch.cuda.mem_get_info(device)[0]) // per_block)
    else:
        count = min(enough, memory_available_bytes() // 4 // per_block)
    if count < 1:
        raise ConfigError(f"no memory for the KV cache: one block of {config.block_size} tokens needs {per_block} bytes")
    return count


def memory_available_bytes() -> int:
    """Of this host or container, whichever is less."""
    free = 2**33
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    return min(free, max(int(limit) - int(used), 0)) if limit.isdigit() and used.isdigit() else free


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def thread_count(bound: int, weight_bytes: int) -> int:
    return 1 if weight_bytes < 64e6 else bound


def _special_ids(folder: Path, raw: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """generation_config.json knows better than config.json when both speak."""
    generation = read_json(folder, "generation_config.json") if (folder / "generation_config.json").exists() else {}
    eos = generation.get("eos_token_id", raw.get("eos_token_id"))
    bos = generation.get("bos_token_id", raw.get("bos_token_id"))
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token, int) for token in eos_ids):
        raise ModelError(f"{folder}: eos_token_id must be an integer or a list of them, it is {eos!r}")
    return tuple(eos_ids), bos if isinstance(bos, int) else None
