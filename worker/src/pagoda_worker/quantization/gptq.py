"""GPTQ: rounding one input after another, each error made good by the inputs not yet rounded (Frantar et al., arXiv 2210.17323). Pure.

With `sparse`, two of each four inputs become zero, chosen by what their loss costs (SparseGPT, Frantar and Alistarh, arXiv 2301.00774).
"""

import torch
from torch import Tensor

from pagoda_worker.quantization.grid import Grid, Recipe
from pagoda_worker.quantization.sparsity import four_of_which_two
from pagoda_worker.quantization.weights import QuantizedWeight

DAMPING = 0.01
"""Of the Hessian's mean diagonal, added to it: the paper's."""
_BLOCK = 128
"""Inputs whose errors reach the rest of the weight in one product."""


def gptq(weight: Tensor, hessian: Tensor, recipe: Recipe, *, act_order: bool = False, sparse: bool = False) -> QuantizedWeight:
    """weight [out, in] float32; hessian [in, in] of its inputs; int8 or int4. act_order: inputs that matter most are rounded first, in the
    groups of their neighbours, so that the result needs no order; not with sparse."""
    assert not (act_order and sparse), "four neighbours are rounded one after another"
    size = weight.shape[1]
    silent = hessian.diagonal() == 0
    weight = torch.where(silent, 0.0, weight)
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(size, device=weight.device)
    upper = _inverse_factor(hessian[order][:, order])
    group_of = order // (size // recipe.groups(size))
    grid = Grid.of(weight, recipe)
    steps, grid = _rounded(weight[:, order], upper, group_of.tolist(), grid, recipe, moving=not act_order, sparse=sparse)
    return grid.weight(steps[:, torch.argsort(order)])


def _inverse_factor(hessian: Tensor) -> Tensor:
    """[in, in]: the upper Cholesky factor of the damped Hessian's inverse. Its row i has how an error at input i is spread over those after
    it, once those before it are settled."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += DAMPING * diagonal.mean()
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    return factor


def _rounded(
    weight: Tensor, upper: Tensor, group_of: list[int], grid: Grid, recipe: Recipe, *, moving: bool, sparse: bool
) -> tuple[Tensor, Grid]:
    """(steps [out, in] in the weight's order of inputs, the grid). `moving`: a group's grid is made of what is left when it is reached."""
    weight, steps, size = weight.clone(), torch.empty_like(weight), weight.shape[1]
    width = size // recipe.groups(size)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = torch.empty(len(weight), stop - start, device=weight.device)
        zeroed = torch.zeros(len(weight), stop - start, dtype=torch.bool, device=weight.device)
        for i in range(start, stop):
            if moving and i % width == 0:
                # columns beyond this block have not felt its errors yet; the authors' code takes them as they are, too
                _set_group(grid, group_of[i], weight[:, i : i + width], recipe)
            if sparse and i % 4 == 0:
                cost = (weight[:, i : i + 4] / upper.diagonal()[i : i + 4]) ** 2
                zeroed[:, i - start : i - start + 4] = four_of_which_two(cost)
            column, group = weight[:, i], group_of[i]
            steps[:, i] = torch.where(zeroed[:, i - start], grid.zeros[:, group], grid.steps(column, group))
            error = (column - grid.meaning(steps[:, i], group)) / upper[i, i]
            weight[:, i:stop] -= error[:, None] * upper[i, i:stop]
            errors[:, i - start] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return steps, grid


def _set_group(grid: Grid, group: int, values: Tensor, recipe: Recipe) -> None:
    whole = Recipe(to=recipe.to, group_size=None, symmetric=recipe.symmetric, scale_dtype=recipe.scale_dtype)
    own = Grid.of(values, whole)
    grid.scales[:, group], grid.zeros[:, group] = own.scales[:, 0], own.zeros[:, 0]
