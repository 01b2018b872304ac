"""The norms of transformer blocks. Called by models."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., E], weight [E]. Returns x's shape and dtype; computes in float32 and rounds once."""
    return torch.rms_norm(x, weight.shape, weight, eps)


def layer_norm(x: Tensor, norm: Tensor, eps: float) -> Tensor:
    """x [..., E], norm [2, E]: weight, then bias. Returns x's shape and dtype; computes in float32 and rounds once."""
    weight, bias = norm
    return F.layer_norm(x, weight.shape, weight, bias, eps)
