"""How many adapters an engine has slots for, and what they take. Pure; called by the loader."""

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.adapters import MAX_RANK
from pagoda_worker.models.base import Footprint

DEFAULT_SLOTS = {"cpu": 16, "cuda": 8}


def adapter_slots(config: EngineConfig, device_type: str) -> int:
    """Raises ConfigError for what excludes adapters, when they are asked for."""
    if not 1 <= config.max_adapter_rank <= MAX_RANK:
        raise ConfigError(f"adapters.maxRank is {config.max_adapter_rank}; it must be 1 to {MAX_RANK}")
    for name, on in (("compile", config.compile), ("batchInvariant", config.batch_invariant)):
        if on and (config.adapters or config.adapter_slots):
            raise ConfigError(f"{name} and adapters exclude each other so far: leave one of them out")
        if on:
            return 0
    if config.adapter_slots is not None:
        if config.adapters and not config.adapter_slots:
            raise ConfigError("adapters are declared and adapters.slots is 0: raise it to at least 1")
        return config.adapter_slots
    return DEFAULT_SLOTS[device_type] if device_type == "cpu" or config.adapters else 0


def adapter_bytes(size: Footprint, slots: int, max_rank: int, itemsize: int) -> int:
    """Of all slots on the device. On a CPU memory is taken as far as ranks and adapters use it."""
    return slots * max_rank * size.per_adapter_rank * itemsize
