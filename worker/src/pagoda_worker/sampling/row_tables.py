"""What several parts of a step share about the device's rows: the view of their tokens, and the way of host arrays to them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class History:
    """Token ids of the rows so far, on the device, where the newest may not have left it yet: [rows, ≥ max_model_len] int32; and where each
    row's output begins, on the host."""

    tokens: Tensor
    output_start: IntArray


def to_device(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """From pinned memory on CUDA, so that the host does not wait for what the device still does. torch keeps the pinned block until the
    copy is done."""
    there = torch.from_numpy(values)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there
