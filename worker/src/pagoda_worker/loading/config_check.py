"""Which engine settings contradict each other. Pure; called by the loader."""

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError


def check_config(config: EngineConfig) -> None:
    """What no model and no device could make possible. Raises ConfigError."""
    for name, least in (("max_batch_tokens", 1), ("max_running", 1), ("block_size", 1)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    if config.max_model_len is not None and config.max_model_len < 2:
        raise ConfigError(f"maxModelLen is {config.max_model_len}; a prompt and one output token need at least 2")
    if config.quantization != "none" and config.compile:
        raise ConfigError("compile multiplies plain weights only: leave it out, or quantization at none")
    if config.batch_window_s < 0:
        raise ConfigError(f"batch_window_s is {config.batch_window_s}; it must be at least 0")
    if config.prefix_caching and not (config.paged_kv and config.kv_cache):
        raise ConfigError("prefix_caching shares pages of the KV cache: turn it off too, or paged_kv and kv_cache on")
    if (config.speculative == "draft") != (config.draft_dir is not None):
        raise ConfigError("a draft model goes with speculative method draft, and with no other: give both or neither")
    if config.speculative != "none" and not config.kv_cache:
        raise ConfigError("speculation needs a KV cache: drafts are verified beside what is in it")
    if config.tensor_parallel < 1:
        raise ConfigError(f"tensorParallel is {config.tensor_parallel}; it must be at least 1")
    for name, asked in (("compile", config.compile), ("batchInvariant", config.batch_invariant), ("cuda_graphs", config.cuda_graphs)):
        if asked and config.tensor_parallel > 1:
            raise ConfigError(f"{name} and tensorParallel {config.tensor_parallel} do not go together yet: leave one of them out")
    if not config.kv_cache and config.async_scheduling:
        raise ConfigError("async_scheduling needs a KV cache: without one every step begins with all tokens known")
    if not config.kv_cache and config.batching != "continuous":
        raise ConfigError(f"batching {config.batching} needs a KV cache: without one every step is a batch of its own")


def check_on_device(config: EngineConfig, device_type: str) -> None:
    if config.batch_invariant and device_type != "cpu":
        raise ConfigError("batchInvariant is shown to hold on CPUs only; this device is CUDA: leave it out")


def check_whole_prompts(config: EngineConfig, max_batch_tokens: int, model_len: int) -> None:
    """Of the lengths that loading settled on. Raises ConfigError."""
    needed = model_len + config.max_running - 1
    if not (config.chunked_prefill and config.kv_cache) and max_batch_tokens < needed:
        raise ConfigError(
            f"max_batch_tokens is {max_batch_tokens}; without chunked_prefill or kv_cache a step must hold a whole sequence of "
            f"{model_len} tokens and {config.max_running - 1} neighbours: raise it to {needed}, or lower maxModelLen or maxRunning"
        )
