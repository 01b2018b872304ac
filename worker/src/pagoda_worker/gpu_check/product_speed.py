"""How fast are quantized products on this device? The four of a layer together, every form beside torch's bf16 linear and the roofline.

Times are of replayed CUDA graphs over so many copies of the weights that no cache holds them, as a decode step meets them. No gate hangs on
them. Imports Triton, as products.py. Called by the check.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.gpu_check.device import replayed_s
from pagoda_worker.gpu_check.report import Report
from pagoda_worker.gpu_check.roofline import DeviceSpeed, product_s
from pagoda_worker.gpu_check.shapes import LLAMA_8B, QWEN3_06B, TINY, Shape
from pagoda_worker.layers.cuda_linear import FewRowsProduct, WeightOnlyProduct, quantized_product
from pagoda_worker.layers.linear import Product
from pagoda_worker.quantization.rounding import int4, int8
from pagoda_worker.quantization.weights import Fp8Weight, QuantizedWeight

Multiply = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedScale:
    shapes: Sequence[Shape]
    rows: Sequence[int]
    weight_bytes: int
    """Of all copies of a layer together: far more than a cache holds."""


FULL_SPEED = SpeedScale(shapes=(QWEN3_06B, LLAMA_8B), rows=(1, 8, 64, 512), weight_bytes=256 << 20)
SMALL_SPEED = SpeedScale(shapes=(replace(TINY, kv_heads=1, intermediate=128),), rows=(5,), weight_bytes=0)
SCALES = {"FULL_KERNELS": FULL_SPEED, "SMALL_KERNELS": SMALL_SPEED}
"""By the names of kernels.py's scales."""


def layer_products(shape: Shape) -> list[tuple[int, int]]:
    """(outputs, inputs) of queries, keys and values; output; gate and up; down."""
    heads = shape.heads * shape.head_dim
    return [
        (heads + 2 * shape.kv_heads * shape.head_dim, shape.hidden),
        (shape.hidden, heads),
        (2 * shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    name: str
    bits: int
    """Of a weight, scales left out."""
    speedup: int
    """Of its matrix instructions over those of bf16."""
    make: Callable[[Tensor], Multiply]
    """Of a plain weight [out, in]."""


def _multiplied(weight: QuantizedWeight) -> Product:
    product = quantized_product(weight)
    assert product is not None, "the check's groups are those that kernels take"
    return product


def _quantized(rounded: Callable[[Tensor], QuantizedWeight]) -> Callable[[Tensor], Multiply]:
    def make(weight: Tensor) -> Multiply:
        product = _multiplied(rounded(weight))
        return lambda x: product(x, None)

    return make


def _by_copy(weight: Tensor) -> Multiply:
    product = _multiplied(int4(weight, 128, symmetric=True))
    assert isinstance(product, WeightOnlyProduct)
    return lambda x: product.by_copy(x, None)


def fp8_blocks(weight: Tensor) -> Fp8Weight:
    """128 x 128, one scale for all: only the layout matters to speed."""
    outputs, inputs = weight.shape
    scales = torch.full((-(-outputs // 128), -(-inputs // 128)), 0.01, device=weight.device)
    return Fp8Weight((weight / 0.01).clamp(-448, 448).to(torch.float8_e4m3fn), scales, (128, 128))


def fp8_rows(weight: Tensor) -> Fp8Weight:
    wide = weight.float()
    scales = wide.abs().amax(dim=1, keepdim=True) / 448
    return Fp8Weight((wide / scales).to(torch.float8_e4m3fn), scales, (1, weight.shape[1]))


def _scaled_mm(weight: Tensor) -> Multiply:
    """torch's W8A8 in fp8, a scale per output and per row; the rows' rounding in it is torch's too."""
    kept = fp8_rows(weight)

    def multiply(x: Tensor) -> Tensor:
        of_rows = (x.abs().amax(dim=1, keepdim=True).float() / 448).clamp(min=1e-12)
        rounded = (x.float() / of_rows).to(torch.float8_e4m3fn)
        recipe = F.ScalingType.RowWise
        product: Tensor = F.scaled_mm(rounded, kept.values.T, of_rows, recipe, kept.scales.T, recipe, output_dtype=x.dtype)
        return product

    return multiply


BF16 = Contender(name="bf16", bits=16, speedup=1, make=lambda weight: lambda x: F.linear(x, weight))


def _few_rows(weight: Tensor) -> Multiply:
    product = FewRowsProduct(weight)
    return lambda x: product(x, None)


CONTENDERS = (
    BF16,
    Contender(name="bf16, few rows by our kernel", bits=16, speedup=1, make=_few_rows),
    Contender(name="int8", bits=8, speedup=2, make=_quantized(int8)),
    Contender(name="int4 g128", bits=4, speedup=1, make=_quantized(lambda weight: int4(weight, 128, symmetric=True))),
    Contender(name="int4 g128 zeros", bits=4, speedup=1, make=_quantized(lambda weight: int4(weight, 128))),
    Contender(name="fp8 per output", bits=8, speedup=1, make=_quantized(fp8_rows)),
    Contender(name="fp8 128 x 128", bits=8, speedup=1, make=_quantized(fp8_blocks)),
)
MANY_ROWS = Contender(name="int4 g128 through a bf16 copy", bits=4, speedup=1, make=_by_copy)
"""Beside them, for `layers/cuda_linear.py`'s choice by rows."""
TORCH_FP8 = Contender(name="torch scaled_mm fp8", bits=8, speedup=2, make=_scaled_mm)
LEAST_FP8_CAPABILITY = (9, 0)
"""Where torch scales by rows."""


def contenders_on(device: torch.device) -> tuple[Contender, ...]:
    """The CPU's scaled_mm is a reference that takes minutes."""
    has_fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_FP8_CAPABILITY
    return (*CONTENDERS, MANY_ROWS, *((TORCH_FP8,) if has_fp8 else ()))


def time_contender(shape: Shape, contender: Contender, scale: SpeedScale, device: torch.device, speed: DeviceSpeed, report: Report) -> None:
    """A line and rows of the result for each number of rows."""
    sizes = layer_products(shape)
    layer_bytes = sum(outputs * inputs for outputs, inputs in sizes) * contender.bits // 8
    copies = max(1, -(-scale.weight_bytes // layer_bytes))
    layers = [[contender.make(_weight(*size, device)) for size in sizes] for _ in range(copies)]
    for rows in scale.rows:
        inputs = [torch.randn(rows, size, device=device).to(torch.bfloat16) for _, size in sizes]

        def step(inputs: list[Tensor] = inputs) -> None:
            for layer in layers:
                for multiply, x in zip(layer, inputs, strict=True):
                    multiply(x)

        seconds = replayed_s(step, device) / copies
        least = product_s(sizes, speed, rows=rows, bits=contender.bits, speedup=contender.speedup)
        _tell(f"products of a layer of {shape.name}, {rows} rows", contender, seconds, least, layer_bytes, rows, report)


def _weight(outputs: int, inputs: int, device: torch.device) -> Tensor:
    return torch.randn(outputs, inputs, device=device).div_(math.sqrt(inputs)).to(torch.bfloat16)


def _tell(case: str, contender: Contender, seconds: float, least: float, layer_bytes: int, rows: int, report: Report) -> None:
    weights = layer_bytes * 8 // contender.bits
    report.add_row(case, contender.name, "layer_us", 1e6 * seconds, "us")
    report.add_row(case, contender.name, "weights_read", layer_bytes / seconds, "bytes/s")
    report.add_row(case, contender.name, "operations", 2 * weights * rows / seconds, "flop/s")
    report.add_row(case, contender.name, "of_roofline", least / seconds, "share")
    plain = next((row.value for row in report.rows if (row.case, row.system, row.metric) == (case, BF16.name, "layer_us")), None)
    beside = "" if plain is None else f", {plain / (1e6 * seconds):5.2f} x bf16"
    if plain is not None:
        report.add_row(case, contender.name, "over_bf16", plain / (1e6 * seconds), "ratio")
    report.line(
        f"{case:45} {contender.name:30} {1e6 * seconds:9.1f} us {layer_bytes / seconds / 1e9:7.0f} GB/s "
        f"{2 * weights * rows / seconds / 1e12:7.1f} TFLOP/s, {100 * least / seconds:5.1f} % of the roofline{beside}"
    )
