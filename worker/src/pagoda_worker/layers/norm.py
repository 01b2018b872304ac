"""Root-mean-square norm as Llama-like models use it. Called by models."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, E], weight [E]. Returns [T, E] in x's dtype; computes in float32 and rounds once."""
    return torch.rms_norm(x, weight.shape, weight, eps)
