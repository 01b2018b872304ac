"""How much memory a device and its host have for one engine, and how many KV blocks that makes.

Asks the device; owns nothing. Called by the loader before and after it reads the weights; the sums are memory.py's.
"""

from dataclasses import dataclass

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.loading.draft import draft_footprint
from pagoda_worker.loading.host_room import host_bytes_there
from pagoda_worker.loading.limits import Limits
from pagoda_worker.loading.memory import MemoryNeeds, check_host_fits
from pagoda_worker.models.base import Footprint

KV_SHARE_OF_DEVICE = 0.9
LOGIT_BYTES = 12
"""Per vocabulary entry of a sampling row: logits, their float32 copy and the noise or the probabilities."""
PROCESSES_BYTES = 400 << 20
"""What front and engine process hold besides the model, when only a number says what they may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFound:
    needs: MemoryNeeds
    there: int
    """What may be used, that already held included."""
    room: int
    """For KV blocks, once everything else has what it needs."""

    def awake_bytes(self, config: EngineConfig, device: torch.device, block_count: int) -> int:
        """Weights and a full KV cache; on a CPU the host's blocks lie in the same memory."""
        on_host = config.swap_bytes + config.host_tier_bytes if device.type == "cpu" else 0
        return self.needs.weights + block_count * config.block_size * self.needs.per_token + on_host


def memory_found(
    config: EngineConfig,
    size: Footprint,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
    max_batch_tokens: int,
    limits: Limits,
) -> MemoryFound:
    """Before anything is allocated; `dtype` of weights and activations, `kv_dtype` of what the cache holds. On CUDA a tenth stays for the
    steps themselves; on CPU they are estimated."""
    weights, per_token = size.weight_bytes(dtype.itemsize), size.cache.bytes_per_token(kv_dtype)
    if (draft := draft_footprint(config)) is not None:  # its cache has a page for every page of the model's
        weights += draft.weight_bytes(dtype.itemsize)
        per_token += draft.cache.bytes_per_token(dtype)
    host = config.swap_bytes + config.host_tier_bytes
    if device.type == "cuda":
        check_host_fits(host, host_bytes_there(config, limits, held=PROCESSES_BYTES))
        there = torch.cuda.mem_get_info(device)[0]
        return MemoryFound(
            needs=MemoryNeeds(weights=weights, per_token=per_token, besides=0),
            there=there,
            room=int(KV_SHARE_OF_DEVICE * max(there - weights, 0)),
        )
    limit = limits.memory_bytes()
    step = max_batch_tokens * size.per_step_token * dtype.itemsize + config.max_running * size.vocab * LOGIT_BYTES
    if config.memory_bytes is None and limit is None:
        there, held = limits.memory_available_bytes(), 0
    elif limit is not None and (config.memory_bytes is None or limit <= config.memory_bytes):
        there, held = limit, limits.memory_used_bytes()
    else:
        assert config.memory_bytes is not None
        there, held = config.memory_bytes, PROCESSES_BYTES
    needs = MemoryNeeds(weights=weights, per_token=per_token, besides=step + held + host)
    return MemoryFound(needs=needs, there=there, room=needs.kv_room(there))


def count_blocks(config: EngineConfig, memory: MemoryFound, model_len: int, device: torch.device, *, unread_bytes: int) -> int:
    """Of the KV cache. `unread_bytes`: of weights that are not on the device yet. Raises ConfigError."""
    per_block = memory.needs.per_token * config.block_size
    per_sequence = -(-model_len // config.block_size)
    enough = config.max_running * per_sequence
    if config.kv_cache_bytes is not None:
        count = min(enough, config.kv_cache_bytes // per_block)
    elif device.type == "cuda":
        count = min(enough, int(KV_SHARE_OF_DEVICE * (torch.cuda.mem_get_info(device)[0] - unread_bytes)) // per_block)
    else:
        asked = per_sequence if config.max_model_len is not None else 0
        count = min(enough, max(memory.there // 4 // per_block, asked), memory.room // per_block)
    if count < 1:
        raise ConfigError(f"no memory for the KV cache: one block of {config.block_size} tokens needs {per_block} bytes")
    return count
