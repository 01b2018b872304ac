"""How much of the machine's memory bandwidth one stream uses: what bounds a model whose every token reads all weights.

Called by the runner, between systems, so that the figure is of the same run.
"""

import json
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pagoda_bench.results import Row

_BYTES = 1 << 30
"""Read at once: more than any cache holds."""
_PASSES = 6
EMBEDDING = "embed_tokens.weight"
"""Of which a token reads one row."""


def read_bytes_per_s(threads: int) -> float:
    """The best of a few passes over memory that no cache holds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory = torch.ones(_BYTES // 4)
        return max(memory.nbytes / _seconds(memory) for _ in range(_PASSES))
    finally:
        torch.set_num_threads(before)


def _seconds(memory: torch.Tensor) -> float:
    began = time.perf_counter()
    memory.sum()
    return time.perf_counter() - began


def bytes_per_token(folder: Path) -> int:
    """Of the weights, as they are stored, without the table of embeddings."""
    read = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensors = json.loads(file.read(length))
        for name, tensor in tensors.items():
            if name != "__metadata__" and not name.endswith(EMBEDDING):
                begin, end = tensor["data_offsets"]
                read += end - begin
    return read


def bandwidth_rows(case: str, system: str, tokens_per_s: Sequence[float], token_bytes: int, bytes_per_s: float) -> list[Row]:
    """Of one stream; its prompt's share of the time is not taken off."""
    ratios = sorted(each * token_bytes / bytes_per_s for each in tokens_per_s)
    value = ratios[len(ratios) // 2]
    return [
        Row(case=case, system="memory", metric="read_gb_per_s", value=bytes_per_s / 1e9, unit="GB/s"),
        Row(
            case=case,
            system=system,
            metric="weights_read_of_bandwidth_ratio",
            value=value,
            unit="ratio",
            low=ratios[0],
            high=ratios[-1],
            aim=">= 0.8",
            met=value >= 0.8,
        ),
    ]
