"""How much host memory KV blocks get, from settings and limits. Reads limits, allocates nothing; called by the loader."""

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.loading.limits import Limits
from pagoda_worker.scheduling.residency import HostRoom


def host_bytes_there(config: EngineConfig, limits: Limits, *, held: int) -> int:
    """What is left of the host's memory for copies of blocks, when the device has a memory of its own; `held` by the processes already."""
    limit = limits.memory_bytes()
    bounds = [limits.memory_available_bytes()]
    bounds += [] if limit is None else [limit - limits.memory_used_bytes()]
    bounds += [] if config.memory_bytes is None else [config.memory_bytes - held]
    return max(min(bounds), 0)


def host_room(config: EngineConfig, block_bytes: int) -> HostRoom:
    """Raises ConfigError for a size that holds no block."""
    for name, given in (("swap", config.swap_bytes), ("hostTier", config.host_tier_bytes)):
        if 0 < given < block_bytes:
            raise ConfigError(f"kvCache.{name} is {given} bytes; one block needs {block_bytes}: give it more, or 0 for none")
    return HostRoom(swap_slots=config.swap_bytes // block_bytes, tier_slots=config.host_tier_bytes // block_bytes, block_bytes=block_bytes)
