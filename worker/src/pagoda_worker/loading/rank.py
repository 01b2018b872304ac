"""One rank of an engine, and its share of what the worker was given. Knows no processes; called by the loader.

Settings speak of the worker: bytes and threads of all ranks together. Rank 0 schedules, samples and answers; the others compute with it.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.collectives import TIMEOUT_S, GroupCollectives
from pagoda_worker.layers.meeting_ground import GroundCollectives
from pagoda_worker.layers.parallel import Alone, Collectives
from pagoda_worker.native.library import load_library

NO_BOUND = 1 << 62


@dataclass(frozen=True, slots=True)
class Rank:
    index: int = 0
    count: int = 1
    meeting: Path | None = None
    """The file by which the ranks find each other. None: there is one."""
    apart: bool = False
    """It is a process of its own, and keeps to its part of the cores. Left alone two ranks that wake each other end up on one."""

    def join(self, device: torch.device) -> Collectives:
        """Waits for the other ranks."""
        if self.meeting is None:
            return Alone()
        group = GroupCollectives(self.index, self.count, self.meeting, device)
        library = load_library() if device.type == "cpu" else None
        return group if library is None else GroundCollectives(library, group, self.meeting.with_name("ground"), patience_s=TIMEOUT_S)

    def device(self, kind: torch.device) -> torch.device:
        """Its own GPU, which becomes the current one. Raises ConfigError when there are fewer than ranks."""
        if kind.type == "cuda" and self.count > 1:
            there = torch.cuda.device_count()
            if there < self.count:
                raise ConfigError(
                    f"tensorParallel is {self.count} and the worker sees {there} GPU{'' if there == 1 else 's'}: give it {self.count}, or "
                    f"lower tensorParallel to {there}"
                )
            torch.cuda.set_device(self.index)
        return kind

    def share(self, config: EngineConfig, device_type: str) -> EngineConfig:
        """Its part of the bytes. On a CPU rank 0 counts KV blocks for all: the host's memory is one, and what the others have taken of it
        when a rank looks says nothing."""
        if self.count == 1:
            return config
        kv_bytes = config.kv_cache_bytes
        if self.index and device_type == "cpu":
            kv_bytes = NO_BOUND
        elif kv_bytes is not None:
            kv_bytes //= self.count
        return replace(
            config,
            kv_cache_bytes=kv_bytes,
            swap_bytes=config.swap_bytes // self.count,
            host_tier_bytes=config.host_tier_bytes // self.count,
            memory_bytes=None if config.memory_bytes is None else config.memory_bytes // self.count,
        )

    def part_of(self, things: list[int]) -> list[int]:
        """Neighbours in the list; all of them when there are fewer than ranks."""
        if len(things) < self.count:
            return things
        return things[self.index * len(things) // self.count : (self.index + 1) * len(things) // self.count]


ALONE = Rank()


def gpu_uuids(device: torch.device, ranks: int) -> list[str]:
    """Of all ranks, by which NVML finds the devices whatever CUDA_VISIBLE_DEVICES made of their numbers."""
    if device.type != "cuda":
        return []
    found = [str(torch.cuda.get_device_properties(each if ranks > 1 else device).uuid) for each in range(ranks)]
    return [uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}" for uuid in found]
