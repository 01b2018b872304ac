"""Collectives of ranks on one machine: gloo between CPUs, NCCL between GPUs. Owns the process group; knows no model.

The group is an object, not torch's default one: an engine may come and go in a process that has groups of its own. Nothing listens beyond
loopback.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT_S = 120.0
"""Ranks run in step: they meet some ten milliseconds apart. A rank that died is noticed at once by who started it; this is for one that
hangs while nobody watches."""


class GroupCollectives:
    def __init__(self, rank: int, size: int, meeting: Path, device: torch.device) -> None:
        """Returns when all ranks have come. `meeting`: a file that does not exist yet, in a folder that only these ranks can write."""
        self.rank, self.size = rank, size
        store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
        if device.type == "cuda":
            self.name = "NCCL"
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timedelta(seconds=TIMEOUT_S)
            self._group: Any = dist.ProcessGroupNCCL(store, rank, size, options)
        else:
            self.name = "gloo"
            gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            gloo._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
            gloo._timeout = timedelta(seconds=TIMEOUT_S)
            self._group = dist.ProcessGroupGloo(store, rank, size, gloo)

    def all_reduce(self, x: Tensor) -> Tensor:
        self._group.allreduce([x]).wait()
        return x

    def gather(self, x: Tensor) -> Sequence[Tensor]:
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        self._group.gather([parts] if parts else [], [x.contiguous()], options).wait()
        return parts

    def broadcast(self, x: Tensor) -> None:
        self._group.broadcast(x, 0).wait()
