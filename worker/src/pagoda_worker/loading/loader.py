"""Folder and settings → a model on its device and the sizes everything else follows from.

Resolves every "auto" and None of EngineConfig, once. Called by the engine; knows no requests.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError, ModelError, OutOfMemory, gibibytes
from pagoda_worker.facts import ModelFacts
from pagoda_worker.layers.kv_cache import QUANTIZED
from pagoda_worker.layers.selection import operators_for
from pagoda_worker.loading.adapter_room import adapter_bytes, adapter_slots
from pagoda_worker.loading.cache_room import count_blocks, memory_found
from pagoda_worker.loading.config_check import check_config, check_on_device, check_whole_prompts
from pagoda_worker.loading.draft import check_draft
from pagoda_worker.loading.host_room import host_room
from pagoda_worker.loading.limits import Limits, SharedLimits
from pagoda_worker.loading.memory import check_fits, fitting_length
from pagoda_worker.loading.rank import ALONE, Rank, gpu_uuids
from pagoda_worker.models.base import Footprint, Model
from pagoda_worker.models.checkpoint import checkpoint_bytes, layout_in, read_config, stored_dtype
from pagoda_worker.models.compiled import CompiledModel, check_compile
from pagoda_worker.models.files import read_json
from pagoda_worker.models.registry import architecture_of, footprint_as_stored, footprint_of, load_model
from pagoda_worker.models.rounded import footprint_rounded, form_of_weights
from pagoda_worker.scheduling.residency import HostRoom

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEFAULT_BATCH_TOKENS = {"cuda": 8192, "cpu": 1024}
DEFAULT_LONG_PREFILL_TOKENS = {"cuda": 2048, "cpu": 256}
_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    model: Model | None
    """None with load: lazy."""
    read_model: Callable[[], Model]
    """Reads the weights (again). Raises ModelError, OutOfMemory."""
    vocab_size: int
    architecture: str
    device: torch.device
    dtype_name: str
    kv_dtype: torch.dtype
    """Of what the KV cache holds."""
    quantization: str
    """Of the weights: none, int8, int4, fp8, or what a quantized checkpoint says of itself."""
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    max_model_len: int
    max_model_len_fitting: int
    max_batch_tokens: int
    block_count: int
    long_prefill_tokens: int | None
    host: HostRoom
    awake_bytes: int
    """Weights and a full KV cache."""
    checkpoint_bytes: int
    """Of the files that were read; 0: random weights."""
    weights_s: float
    """To allocate, read and pack them."""
    adapter_slots: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    def facts(self, config: EngineConfig) -> ModelFacts:
        """Nothing measured, no limits of the engine's own."""
        return ModelFacts(
            architecture=self.architecture,
            dtype=self.dtype_name,
            quantization=self.quantization,
            device="cpu" if self.device.type == "cpu" else f"cuda:{torch.cuda.get_device_name(self.device)}",
            max_model_len=self.max_model_len,
            vocab_size=self.vocab_size,
            eos_token_ids=list(self.eos_token_ids),
            bos_token_id=self.bos_token_id,
            max_batch_tokens=self.max_batch_tokens,
            block_size=config.block_size,
            kv_capacity_tokens=self.block_count * config.block_size,
            max_running=config.max_running,
            max_sequences_per_request=1,
            max_top_logprobs=0,
            max_model_len_fitting=self.max_model_len_fitting,
            gpu_uuids=gpu_uuids(self.device, config.tensor_parallel),
            awake_bytes=self.awake_bytes,
            checkpoint_bytes=self.checkpoint_bytes,
            adapter_slots=self.adapter_slots,
            max_adapter_rank=config.max_adapter_rank,
        )


News = Callable[[str, int, int], None]
"""(stage, bytes done, bytes in all)."""


def load(
    config: EngineConfig,
    *,
    news: News = lambda stage, done, total: None,
    limits: Limits | None = None,
    rank: Rank = ALONE,
    agree: Callable[[int], int] = lambda blocks: blocks,
) -> Loaded:
    """`rank`: whose part of the model; `agree`: from the KV blocks that it has room for to those that all ranks have.
    Raises ModelError, UnsupportedModel, ConfigError, OutOfMemory."""
    check_config(config)
    check_compile(config)
    folder = config.model_dir
    raw = read_config(folder)
    size = footprint_of(raw, rank.count)
    check_draft(config, size)
    device = rank.device(resolve_device(config.device))
    config = rank.share(config, device.type)
    check_on_device(config, device.type)
    slots = adapter_slots(config, device.type)
    dtype_name = _resolve_dtype(config, raw, device)
    if not config.random_weights:
        size = footprint_as_stored(folder, raw, DTYPES[dtype_name].itemsize, rank.count)
    quantization = form_of_weights(config.quantization, None if config.random_weights else layout_in(folder, raw), folder)
    size = footprint_rounded(size, config.quantization, DTYPES[dtype_name].itemsize)
    longest = _longest(config, size)
    max_batch_tokens = config.max_batch_tokens or DEFAULT_BATCH_TOKENS[device.type]
    limits = SharedLimits(limits or Limits(), rank.count)
    kv_dtype = QUANTIZED.get(config.kv_dtype, DTYPES[dtype_name])
    memory = memory_found(config, size, DTYPES[dtype_name], kv_dtype, device, max_batch_tokens, limits)
    if config.kv_cache_bytes is None:
        check_fits(memory.needs, memory.room, memory.there, wanted=config.max_model_len, block_size=config.block_size, longest=longest)
    file_bytes = 0 if config.random_weights else checkpoint_bytes(folder)
    if device.type == "cpu":
        _take_threads(config, limits, rank, weight_bytes=file_bytes // rank.count or memory.needs.weights)
    model_len = config.max_model_len or longest
    operators = operators_for(config, device, dtype=DTYPES[dtype_name], head_dim=size.cache.head_dim)
    operators.collectives = rank.join(device)
    began = time.monotonic()
    build = partial(
        load_model,
        folder,
        raw,
        max_model_len=model_len,
        dtype=DTYPES[dtype_name],
        device=device,
        operators=operators,
        quantization=config.quantization,
        random_weights=config.random_weights,
        packed=not config.compile,
        copied=lambda done, total: news("loading weights", done, total),
    )
    read_model = partial(_read_model, build, memory.needs.weights, compiled=config.compile)
    model = None if config.load == "lazy" else read_model()
    weights_s = time.monotonic() - began
    unread = memory.needs.weights if model is None else 0
    unread += adapter_bytes(size, slots, config.max_adapter_rank, DTYPES[dtype_name].itemsize)
    block_count = agree(count_blocks(config, memory, model_len, device, unread_bytes=unread))
    model_len = _length_held(config, model_len, cache_tokens=block_count * config.block_size)
    check_whole_prompts(config, max_batch_tokens, model_len)
    eos, bos = _special_ids(folder, raw)
    return Loaded(
        model=model,
        read_model=read_model,
        vocab_size=size.vocab,
        architecture=architecture_of(raw),
        device=device,
        dtype_name=dtype_name,
        kv_dtype=kv_dtype,
        quantization=quantization,
        eos_token_ids=eos,
        bos_token_id=bos,
        max_model_len=model_len,
        max_model_len_fitting=max(model_len, fitting_length(memory.needs, memory.room, block_size=config.block_size, longest=longest)),
        max_batch_tokens=max_batch_tokens,
        block_count=block_count,
        long_prefill_tokens=long_prefill_tokens(config, device),
        host=host_room(config, memory.needs.per_token * config.block_size),
        awake_bytes=rank.count * memory.awake_bytes(config, device, block_count),
        checkpoint_bytes=file_bytes,
        weights_s=weights_s,
        adapter_slots=slots,
    )


def _read_model(build: Callable[[], Model], weight_bytes: int, *, compiled: bool) -> Model:
    with out_of_memory_says(f"the device has no room for {gibibytes(weight_bytes)} of weights: something else uses it"):
        return CompiledModel(build()) if compiled else build()


def resolve_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("PAGODA_DEVICE is cuda, but torch sees no CUDA device: check the driver, or use auto or cpu")
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def _longest(config: EngineConfig, size: Footprint) -> int:
    longest = size.max_position
    if longest < 2:
        raise ModelError(f"{config.model_dir / 'config.json'}: the model has {longest} position; a prompt and one output token need 2")
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ConfigError(
            f"maxModelLen is {config.max_model_len}; {config.model_dir} was trained for {longest} positions: lower it to at most {longest}"
        )
    return longest


def _length_held(config: EngineConfig, model_len: int, *, cache_tokens: int) -> int:
    """A length that was asked for is not cut in silence."""
    if config.max_model_len is not None and cache_tokens < model_len:
        raise ConfigError(
            f"maxModelLen is {model_len}; the KV cache holds {cache_tokens} tokens: lower maxModelLen or give the worker more memory"
        )
    return min(model_len, cache_tokens)


def kernels_in_use(operators: str, attention: str, *, threads: int | None) -> str:
    """In words. `operators`: their name; `attention`: as configured; `threads`: None on a GPU."""
    apart = attention not in ("auto", operators.split()[0])
    words = f"{operators}, attention {attention}" if apart else operators
    return words if threads is None else f"{words}, {threads} thread{'' if threads == 1 else 's'}"


def _resolve_dtype(config: EngineConfig, raw: dict[str, Any], device: torch.device) -> str:
    if config.dtype != "auto":
        return config.dtype
    stored = raw.get("dtype") or raw.get("torch_dtype") or stored_dtype(config.model_dir)
    name = _NAMES.get(str(stored))
    if name is None:
        raise ModelError(f"{config.model_dir}: checkpoint dtype {stored!r} is not served; set dtype to one of {', '.join(DTYPES)}")
    if name == "fp32" and device.type == "cuda" and not config.random_weights and checkpoint_bytes(config.model_dir) > 1e9:
        return "bf16"
    return name


def long_prefill_tokens(config: EngineConfig, device: torch.device) -> int | None:
    wanted = DEFAULT_LONG_PREFILL_TOKENS[device.type] if config.long_prefill_tokens is None else config.long_prefill_tokens
    return wanted or None


@contextlib.contextmanager
def out_of_memory_says(sentence: str) -> Iterator[None]:
    """What allocators raise becomes OutOfMemory: numpy's, CUDA's, and the CPU's, which is a plain RuntimeError."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(sentence) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    words = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in words or "can't allocate memory" in words


def _take_threads(config: EngineConfig, limits: Limits, rank: Rank, *, weight_bytes: int) -> None:
    cores = _take_cores(limits, rank)
    bound = min(config.threads or limits.cpus() or cores, cores)
    torch.set_num_threads(thread_count(max(bound // rank.count, 1), weight_bytes))


def _take_cores(limits: Limits, rank: Rank) -> int:
    """How many physical cores there are for threads of all ranks. Where the CPUs are this container's own, and where it is one of several
    ranks, the process keeps to one thread of each of its cores; else pinning would make workers of one machine queue on the same ones."""
    allowed = os.sched_getaffinity(0)
    cores = limits.cores(allowed)
    if rank.apart or limits.owned_cpus(allowed):
        os.sched_setaffinity(0, rank.part_of(cores))
    return len(cores)


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
