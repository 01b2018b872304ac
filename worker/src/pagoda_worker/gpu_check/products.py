"""Is each kernel of quantized products and adapters right on this device? Every one beside its torch reference.

Owns the cases and their tolerances; takes its trial from kernels.py. Imports Triton, so run.py imports it only where that is there. Called
by the check.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda_worker.gpu_check.kernels import BF16, FP16, FP32, KernelTrial, Worst
from pagoda_worker.gpu_check.truth import Check
from pagoda_worker.kernels.adapter_deltas import add_deltas, add_deltas_reference
from pagoda_worker.kernels.few_rows import MOST_ROWS, few_rows_product, few_rows_product_reference
from pagoda_worker.kernels.int8_product import int8_product, int8_product_reference
from pagoda_worker.kernels.packed_weight import PackedWeight, dequantize, dequantize_reference, pack_words
from pagoda_worker.kernels.quantize_rows import quantize_rows, quantize_rows_reference
from pagoda_worker.kernels.weight_only import weight_only_product, weight_only_product_reference

TOLERANCE = {FP32: (2e-4, 1e-4), FP16: (2e-3, 2**-9), BF16: (1e-2, 2**-6)}
"""Absolute, relative, of products whose results are of size 1: one rounding of the result, and sums in another order."""
INT8_NEAR = {FP32: (1e-5, 1e-6), FP16: (1e-5, 2**-10), BF16: (1e-5, 2**-7)}
"""The sums are exact; a device may scale and add the bias with one rounding."""
DELTA_TOLERANCE = {FP32: (2e-4, 1e-4), FP16: (4e-3, 2**-8), BF16: (4e-2, 2**-5)}
"""The few numbers between A and B are rounded too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductScale:
    shapes: Sequence[tuple[int, int]]
    """(outputs, inputs)."""
    rows: Sequence[int]
    types: Sequence[torch.dtype]
    adapters: int
    tokens: Sequence[int]
    """That have adapters."""


FULL_PRODUCTS = ProductScale(
    shapes=((4096, 4096), (1024, 14_336), (1000, 1096)),
    rows=(1, 5, 16, 40, 64, 300),
    types=(BF16, FP16, FP32),
    adapters=10,
    tokens=(1, 33, 600),
)
SMALL_PRODUCTS = ProductScale(shapes=((36, 136),), rows=(1, 20), types=(BF16, FP32), adapters=3, tokens=(9,))
SCALES = {"FULL_KERNELS": FULL_PRODUCTS, "SMALL_KERNELS": SMALL_PRODUCTS}
"""By the names of kernels.py's scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a weight is stored."""

    name: str
    bits: int
    group: int
    """0: all inputs."""
    block: int = 1
    """0: all outputs."""
    zeros: bool = False


FORMS = (
    Form(name="int4 g128", bits=4, group=128),
    Form(name="int4 g128 zeros", bits=4, group=128, zeros=True),
    Form(name="int4 g32 zeros", bits=4, group=32, zeros=True),
    Form(name="int4 one group", bits=4, group=0),
    Form(name="fp8 per output", bits=8, group=0),
    Form(name="fp8 whole", bits=8, group=0, block=0),
    Form(name="fp8 128 x 128", bits=8, group=128, block=128),
)


def random_packed(form: Form, outputs: int, inputs: int, device: torch.device) -> PackedWeight:
    """Products with standard normal inputs are about of size 1."""
    group, block = form.group or inputs, form.block or outputs
    shape = -(-inputs // group), -(-outputs // block)
    values = torch.randint(0, 2**form.bits, (outputs, inputs), dtype=torch.uint8, device=device)
    if form.bits == 8:
        values[(values & 127) == 127] = 0  # e4m3 has no such number
    scales = (0.5 + torch.rand(shape, device=device)) / ((8 if form.bits == 4 else 150) * inputs**0.5)
    zeros = torch.randint(0, 16, (shape[0], outputs), dtype=torch.uint8, device=device) if form.zeros else None
    return PackedWeight(pack_words(values, form.bits), scales, zeros, bits=form.bits, inputs=inputs, group=group, block=block)


def _cases(scale: ProductScale) -> Iterator[tuple[int, int, int, torch.dtype]]:
    """Rows, outputs, inputs, type: every rows and type, with shapes by turns, since each compiles anew on a GPU."""
    at = 0
    for dtype in scale.types:
        for rows in scale.rows:
            outputs, inputs = scale.shapes[at % len(scale.shapes)]
            at += 1
            yield rows, outputs, inputs, dtype


def quantized_rows(trial: KernelTrial, scale: ProductScale) -> Check:
    """What a scale's own rounding moves may be one step; a hundredth of all values at most."""
    equal, count, worst = 0, 0, 0
    for rows, _, inputs, dtype in _cases(scale):
        x = 3 * trial.randn(rows, inputs + 8, dtype=dtype)[:, :inputs]
        (values, _), (expected, _) = quantize_rows(x), quantize_rows_reference(x)
        steps = (values.int() - expected.int()).abs()
        equal, count, worst = equal + int((steps == 0).sum()), count + steps.numel(), max(worst, int(steps.max()))
    return Check("kernel quantize_rows", worst <= 1 and equal >= 0.99 * count, f"{equal} of {count} values equal, others {worst} step off")


def int8(trial: KernelTrial, scale: ProductScale) -> Check:
    worst = Worst()
    for rows, outputs, inputs, dtype in _cases(scale):
        x, weight = (torch.randint(-127, 128, (n, inputs), dtype=torch.int8, device=trial.device) for n in (rows, outputs))
        of_rows, of_outputs = (torch.rand(n, device=trial.device) / 100 for n in (rows, outputs))
        bias = trial.randn(outputs, dtype=dtype) if rows % 2 else None
        factors = x, of_rows, weight, of_outputs, bias, dtype
        worst.add((rows, outputs, inputs, dtype), int8_product(*factors), int8_product_reference(*factors), INT8_NEAR[dtype])
    return worst.check("int8_product")


def weight_only(trial: KernelTrial, scale: ProductScale) -> Check:
    worst = Worst()
    for i, (rows, outputs, inputs, dtype) in enumerate(_cases(scale)):
        for form in FORMS if i == 0 else (FORMS[i % len(FORMS)],):
            weight = random_packed(form, outputs, inputs, trial.device)
            x, bias = trial.randn(rows, inputs, dtype=dtype), trial.randn(outputs, dtype=dtype) if rows % 2 else None
            ours, theirs = weight_only_product(x, weight, bias), weight_only_product_reference(x, weight, bias)
            worst.add((form.name, rows, outputs, inputs, dtype), ours, theirs, TOLERANCE[dtype])
    return worst.check("weight_only_product")


def few_rows(trial: KernelTrial, scale: ProductScale) -> Check:
    worst = Worst()
    for outputs, inputs in scale.shapes:
        for dtype in scale.types:
            weight, bias = trial.randn(outputs, inputs, dtype=dtype) / inputs**0.5, trial.randn(outputs, dtype=dtype)
            for rows, gated in ((1, False), (1, True), (MOST_ROWS - 1, False)):
                x = trial.randn(rows, inputs + 8, dtype=dtype)[:, :inputs]
                factors = x, weight, bias if gated else None
                ours, theirs = few_rows_product(*factors, gated=gated), few_rows_product_reference(*factors, gated=gated)
                worst.add((rows, outputs, inputs, dtype, gated), ours, theirs, TOLERANCE[dtype])
    return worst.check("few_rows_product")


def dequantized(trial: KernelTrial, scale: ProductScale) -> Check:
    """The same bits: one product and one rounding."""
    worst = Worst()
    outputs, inputs = scale.shapes[-1]
    for form in FORMS:
        weight = random_packed(form, outputs, inputs, trial.device)
        for dtype in scale.types:
            near = (0.0, 2**-7) if trial.device.type == "cpu" and dtype == BF16 else (0.0, 1e-9)  # the interpreter cuts bf16 off
            worst.add((form.name, dtype), dequantize(weight, dtype), dequantize_reference(weight, dtype), near)
    return worst.check("dequantize")


def adapter_deltas(trial: KernelTrial, scale: ProductScale) -> Check:
    """Ranks from 0 to 64, tokens without an adapter among them."""
    worst = Worst()
    outputs, inputs = scale.shapes[-1]
    parts = outputs // 2, outputs - outputs // 2 - outputs // 4, outputs // 4
    ranks = torch.tensor([(0, 1, 8, 16, 64)[slot % 5] for slot in range(scale.adapters)], dtype=torch.int32, device=trial.device)
    for dtype in scale.types:
        a = (torch.randn(scale.adapters, len(parts), 64, inputs, device=trial.device) / inputs**0.5).to(dtype)
        b = (torch.randn(scale.adapters, 64, outputs, device=trial.device) / 8).to(dtype)
        for tokens in scale.tokens:
            slots = torch.randint(-1, scale.adapters, (tokens,), dtype=torch.int32, device=trial.device)
            x, ours = trial.randn(tokens, inputs, dtype=dtype), trial.randn(tokens, outputs, dtype=dtype)
            theirs: Tensor = ours.clone()
            add_deltas(x, ours, a, b, ranks, slots, parts)
            add_deltas_reference(x, theirs, a, b, ranks, slots, parts)
            worst.add((tokens, dtype), ours, theirs, DELTA_TOLERANCE[dtype])
    return worst.check("adapter_deltas")


PRODUCT_CHECKS: tuple[Callable[[KernelTrial, ProductScale], Check], ...] = (
    few_rows,
    quantized_rows,
    int8,
    weight_only,
    dequantized,
    adapter_deltas,
)
