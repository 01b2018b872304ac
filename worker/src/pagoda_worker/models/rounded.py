"""Which of a model's weights `spec.engine.quantization` rounds, to what, and how many bytes that leaves. Called while a model is loaded.

The layers' products take the form that was asked for. The head takes int8, whatever they take: it is read for every token as they are, and
loses next to nothing by it, where four bits would move every answer (docs/decisions/quantized-weights.md). Embedding, norms and biases stay
in the model's dtype.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pagoda_worker.config import Quantization
from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.linear import Linear
from pagoda_worker.models.base import Footprint, FusedLinear
from pagoda_worker.models.formats.layout import Layout
from pagoda_worker.quantization.rounding import GROUP, Format, rounded
from pagoda_worker.quantization.weights import QuantizedWeight

HEAD: Format = "int8"
_BYTES = {"int8": 1.0, "int4": 0.5 + 5 / GROUP, "fp8": 1.0}
"""Of a weight, its part of a group's scale and zero point included."""


class Rounding:
    """A linear and its plain weight → that weight rounded; None: it stays plain."""

    def __init__(self, to: Quantization, *, head: Linear) -> None:
        self._to: Format | None = None if to == "none" else to
        self._head = head

    def __call__(self, fused: FusedLinear, weight: Tensor) -> QuantizedWeight | None:
        if self._to is None:
            return None
        return rounded(weight, HEAD if fused.linear is self._head else self._to)

    def tied_head(self) -> None:
        """The head that is the embedding is no tensor of its own in a checkpoint; the embedding stays as it is."""
        if self._to is not None and isinstance(self._head.weight, Tensor):
            self._head.weight = rounded(self._head.weight, HEAD) or self._head.weight


def form_of_weights(to: Quantization, layout: Layout | None, folder: Path) -> str:
    """none, int8, int4, fp8, or what a checkpoint that is held as it is stored says of itself. Raises ConfigError."""
    if layout is None or not layout.kept:
        return to
    if to != "none":
        raise ConfigError(
            f"quantization is {to}, and {folder} is quantized already ({layout.title}): it is held as it is stored, leave quantization out"
        )
    return layout.title


def footprint_rounded(size: Footprint, to: Quantization, itemsize: int) -> Footprint:
    """`itemsize`: of what stays plain. A head that is the embedding comes on top of it."""
    if to == "none":
        return size
    head = size.head_parameters or size.tied_head_parameters
    plain = size.parameters - size.linear_parameters - size.head_parameters
    return replace(size, stored_bytes=int(plain * itemsize + size.linear_parameters * _BYTES[to] + head))
