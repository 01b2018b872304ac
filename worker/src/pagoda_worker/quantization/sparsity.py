"""2:4 sparsity: of each four neighbouring inputs two are zero, as sparse tensor cores want them. Pure."""

import torch
from torch import Tensor


def four_of_which_two(cost: Tensor) -> Tensor:
    """cost [out, 4]: what it costs to lose each → which two are lost, [out, 4] bool."""
    lost = torch.zeros_like(cost, dtype=torch.bool)
    return lost.scatter_(1, cost.argsort(dim=1)[:, :2], True)


def half_lost(weight: Tensor, sizes: Tensor | None = None) -> Tensor:
    """weight [out, in] with two of each four inputs zero: the least in size, or, with the mean sizes of its inputs [in], the least products
    (Wanda, Sun et al., arXiv 2306.11695)."""
    cost = weight.abs() if sizes is None else weight.abs() * sizes
    lost = four_of_which_two(cost.reshape(-1, 4)).view(weight.shape)
    return weight.masked_fill(lost, 0.0)


def is_two_of_four(weight: Tensor) -> bool:
    """[out, in], dequantized."""
    return bool(((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all())
