"""Zeroed memory that is taken when it is written. Called by whoever keeps large tensors that fill slowly: KV caches, tables of rows."""

import math

import numpy as np
import torch
from torch import Tensor


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPU from calloc, so that memory is taken page by page as it is written; torch.zeros would write all of it at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
