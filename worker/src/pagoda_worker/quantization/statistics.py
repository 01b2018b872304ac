"""What calibration keeps of a linear's inputs: their second moments and mean sizes, never the inputs. Owned by who walks the layers."""

import torch
from torch import Tensor


class InputStatistics:
    """Of all rows that were added."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._products = torch.zeros(inputs, inputs, device=device)
        self._sizes = torch.zeros(inputs, device=device)
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """x [..., in]."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self._products.addmm_(rows.T, rows)
        self._sizes += rows.abs().sum(0)
        self.rows += len(rows)

    @property
    def hessian(self) -> Tensor:
        """[in, in]: the mean of x xᵀ, half of the squared output error's second derivative by a row of the weight."""
        return self._products / max(self.rows, 1)

    @property
    def sizes(self) -> Tensor:
        """[in]: the mean of |x|."""
        return self._sizes / max(self.rows, 1)


def output_error(weight: Tensor, approximation: Tensor, hessian: Tensor) -> float:
    """The mean squared error of the outputs, as a share of the outputs' own mean square; weights [out, in] float32."""
    difference = approximation - weight
    whole = ((weight @ hessian) * weight).sum()
    return float(((difference @ hessian) * difference).sum() / whole.clamp(min=1e-30))
