"""Bitmasks over the vocabulary as the sampler takes them. Plain tensor arithmetic; called by runner and sampler."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchMasks:
    """Of the rows at `positions` in the sampler's batch; the other rows have none."""

    positions: npt.NDArray[np.int64]
    bits: Tensor
    """[rows, ceil(V / 32)] int32, on the host."""


def allowed(bits: Tensor, vocab_size: int) -> Tensor:
    """[rows, ceil(V / 32)] int32 → [rows, V] bool. By bytes: an eighth of the memory that shifted words would take."""
    powers = 1 << torch.arange(8, dtype=torch.uint8, device=bits.device)
    one_by_one = bits.view(torch.uint8)[:, :, None] & powers
    return one_by_one.view(len(bits), -1)[:, :vocab_size] != 0
