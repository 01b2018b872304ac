"""AWQ: inputs that are large get larger weights before rounding; what makes them is scaled down as much (Lin et al., arXiv 2306.00978).

Pure: which factors, by a search over powers of the inputs' mean sizes. Each candidate is judged by the squared error of the outputs, which
follows from the inputs' second moments alone. Folding the factors into the model is offline/quantize/folding.py's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pagoda_worker.quantization.grid import Recipe, nearest

STEPS = 20
"""Powers 0, 0.05, … 0.95, as the authors search. 0 is round to nearest: the choice is never worse, on what it was calibrated with."""


def factors(weights: Sequence[Tensor], hessian: Tensor, sizes: Tensor, recipe: Recipe) -> Tensor:
    """[in] float32, positive: what the inputs' weights are to be multiplied with. `weights` [out, in] float32 share their inputs, of which
    hessian [in, in] and sizes [in] tell."""
    best, least = torch.ones_like(sizes), torch.inf
    for step in range(STEPS):
        candidate = (sizes.clamp(min=1e-4)) ** (step / STEPS)
        candidate = candidate / (candidate.max() * candidate.min()).sqrt()
        loss = sum(_loss(weight, candidate, hessian, recipe) for weight in weights)
        if loss < least:
            best, least = candidate, loss
    return best


def _loss(weight: Tensor, candidate: Tensor, hessian: Tensor, recipe: Recipe) -> float:
    difference = nearest(weight * candidate, recipe).dequantized(torch.float32) / candidate - weight
    return float(((difference @ hessian) * difference).sum())
