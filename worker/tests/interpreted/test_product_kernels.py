"""Products of quantized weights in the interpreter against their references, those against what weights mean, and products in layers."""

from itertools import product

import pytest
import torch
from torch import Tensor

from pagoda_worker.kernels.few_rows import few_rows_product, few_rows_product_reference
from pagoda_worker.kernels.int8_product import int8_product, int8_product_reference
from pagoda_worker.kernels.packed_weight import (
    CHUNK,
    E4M3_AS_BF16,
    E4M3_AS_FP16,
    PackedWeight,
    dequantize,
    dequantize_reference,
    pack_words,
    packable_group,
    unpack_words,
)
from pagoda_worker.kernels.product_tiles import ProductTile, join, join_reference
from pagoda_worker.kernels.quantize_rows import quantize_rows, quantize_rows_reference
from pagoda_worker.kernels.weight_only import weight_only_product, weight_only_product_reference
from pagoda_worker.layers import cuda_linear
from pagoda_worker.layers.cuda import TritonOperators
from pagoda_worker.layers.cuda_linear import FewRowsProduct, WeightOnlyProduct, packed_fp8, packed_int4, quantized_product
from pagoda_worker.layers.linear import Linear, gate
from pagoda_worker.quantization import rounding
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, QuantizedWeight

TYPES = [torch.float32, torch.float16, torch.bfloat16]
NEAR = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-3, 2**-9), torch.bfloat16: (1e-2, 2**-6)}
"""Absolute, relative. NOTE: the interpreter cuts bf16 off instead of rounding."""


def close(ours: Tensor, theirs: Tensor) -> None:
    atol, rtol = NEAR[theirs.dtype]
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)


# ---------------------------------------------------------------- int8


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_are_rounded_as_torch_rounds_them(dtype: torch.dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 108).to(dtype)[:, :100]
    x[1] = 0
    x[2, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])  # halves go to the even neighbour
    x[2, 4:] = 0
    values, scales = quantize_rows(x)
    expected, of_rows = quantize_rows_reference(x)
    assert torch.equal(scales, of_rows)
    assert torch.equal(values, expected)
    assert values[2, :4].tolist() == [127, 0, 2, -2]
    assert not values[1].any()


TILE = ProductTile(outputs=32, rows=16, inputs=64, splits=1, warps=4, stages=2)
SPLIT = ProductTile(outputs=16, rows=8, inputs=64, splits=3, warps=4, stages=2)


@pytest.mark.parametrize("tile", [None, TILE, SPLIT], ids=["by size", "whole", "split"])
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 40, 64), (5, 70, 300), (18, 32, 256)])
def test_int8_sums_are_exact_however_they_are_cut(rows: int, outputs: int, inputs: int, tile: ProductTile | None):
    torch.manual_seed(rows)
    x, weight = (torch.randint(-127, 128, (n, inputs), dtype=torch.int8) for n in (rows, outputs))
    for bias in (None, torch.randn(outputs)):
        factors = x, torch.rand(rows), weight, torch.rand(outputs), bias, torch.float32
        assert torch.equal(int8_product(*factors, tile=tile), int8_product_reference(*factors))


def test_many_rows_and_none():
    x, weight = torch.randint(-127, 128, (130, 64), dtype=torch.int8), torch.randint(-127, 128, (130, 64), dtype=torch.int8)
    factors = torch.rand(130), weight, torch.rand(130), None, torch.float32
    assert torch.equal(int8_product(x, *factors), int8_product_reference(x, *factors))
    assert int8_product(x[:0], factors[0][:0], *factors[1:]).shape == (0, 130)


def test_parts_are_joined_in_one_order():
    torch.manual_seed(0)
    for partial, scales in (
        (torch.randn(3, 2, 1030), None),
        (torch.randint(-9, 9, (4, 2, 1030), dtype=torch.int32), (torch.rand(2), torch.rand(1030))),
    ):
        for bias in (None, torch.randn(1030)):
            ours, theirs = torch.empty(2, 2, 1030)
            join(partial, ours, bias, scales)
            join_reference(partial, theirs, bias, scales)
            close(ours, theirs)


# ---------------------------------------------------------------- int4 and fp8


def int4_weight(outputs: int, inputs: int, group: int, *, zeros: bool) -> Int4Weight:
    shape = outputs, inputs // group
    return Int4Weight(
        torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8),
        torch.rand(shape) / 8 + 0.01,
        torch.randint(0, 16, shape, dtype=torch.uint8) if zeros else None,
    )


def fp8_weight(outputs: int, inputs: int, block: tuple[int, int]) -> Fp8Weight:
    """Every one of the 254 numbers is in it when it is large enough."""
    codes = torch.arange(outputs * inputs, dtype=torch.int32).remainder(256)
    codes[codes & 127 == 127] = 0
    codes = codes[torch.randperm(len(codes))].to(torch.uint8).view(outputs, inputs)
    shape = -(-outputs // block[0]), -(-inputs // block[1])
    return Fp8Weight(codes.view(torch.float8_e4m3fn), torch.rand(shape) / 64 + 0.001, block)


def weights() -> dict[str, QuantizedWeight]:
    torch.manual_seed(0)
    return {
        "int4 groups of 128, zeros": int4_weight(40, 256, 128, zeros=True),
        "int4 groups of 128": int4_weight(33, 256, 128, zeros=False),
        "int4 groups of 32": int4_weight(33, 192, 32, zeros=True),
        "int4 groups of 64, part of a chunk": int4_weight(65, 192, 64, zeros=True),
        "int4 groups of 256": int4_weight(16, 512, 256, zeros=True),
        "int4 a scale per output, part of a chunk": int4_weight(16, 300, 300, zeros=True),
        "fp8 a scale per output, part of a chunk": fp8_weight(33, 300, (1, 300)),
        "fp8 one scale": fp8_weight(30, 256, (30, 256)),
        "fp8 blocks": fp8_weight(140, 300, (128, 128)),
        "fp8 groups of 64": fp8_weight(20, 192, (1, 64)),
    }


def packed(weight: QuantizedWeight) -> PackedWeight:
    found = packed_int4(weight) if isinstance(weight, Int4Weight) else packed_fp8(weight)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("name", weights())
def test_packed_weights_mean_what_the_weights_do(name: str):
    weight = weights()[name]
    wide = weight.dequantized(torch.float32)
    torch.testing.assert_close(dequantize_reference(packed(weight), torch.float32), wide, rtol=0, atol=0)
    torch.testing.assert_close(dequantize(packed(weight), torch.float32), wide, rtol=0, atol=0)
    torch.testing.assert_close(dequantize(packed(weight), torch.float32, 3, 12), wide[3:12], rtol=0, atol=0)


HALVES = product((torch.float16, torch.bfloat16), ("int4 groups of 128, zeros", "int4 groups of 32", "fp8 blocks"))


@pytest.mark.parametrize(("dtype", "name"), [*((torch.float32, name) for name in weights()), *HALVES], ids=str)
def test_weight_only_products(dtype: torch.dtype, name: str):
    weight = packed(weights()[name])
    wider, bias = torch.randn(5, weight.inputs + 8).to(dtype), torch.randn(weight.outputs).to(dtype)
    x = wider[:, : weight.inputs]
    close(weight_only_product(x, weight, bias), weight_only_product_reference(x, weight, bias))
    split = ProductTile(outputs=32, rows=8, inputs=CHUNK, splits=2, warps=2, stages=2)
    close(weight_only_product(x, weight, None, split), weight_only_product_reference(x, weight, None))


def test_words_hold_values_a_part_of_a_chunk_apart():
    values = torch.arange(2 * 130).remainder(16).to(torch.uint8).view(2, 130)
    words = pack_words(values, 4)
    assert words.shape == (2, 2, 32), "a second chunk that is nearly empty"
    assert [int(words[0, 1, 5]) >> 4 * part & 15 for part in range(4)] == values[1, 5:128:32].tolist()
    for bits in (4, 8):
        packed_values = PackedWeight(pack_words(values, bits), torch.ones(1, 2), None, bits=bits, inputs=130, group=130, block=1)
        assert torch.equal(unpack_words(packed_values), values)


@pytest.mark.parametrize(
    ("group", "bits", "inputs", "taken"),
    [(128, 4, 256, True), (32, 4, 256, True), (16, 4, 256, False), (32, 8, 256, False), (64, 8, 256, True), (96, 4, 192, False),
     (256, 8, 512, True), (192, 4, 192, True)],
)  # fmt: skip
def test_groups_of_whole_chunks_or_parts_are_taken(group: int, bits: int, inputs: int, taken: bool):
    assert packable_group(group, bits, inputs) is taken


def test_two_words_at_once_become_the_same_numbers():
    """What the PTX of packed_weight.py does on a GPU, step by step in torch: shifts and masks of a register that holds two words."""

    def register(low: Tensor, high: Tensor) -> Tensor:
        return low.long() | high.long() << 16

    def halves(value: Tensor, dtype: torch.dtype) -> list[Tensor]:
        parts = ((value & 0xFFFF), (value >> 16 & 0xFFFF))
        return [torch.where(part > 32767, part - 65536, part).to(torch.int16).view(dtype).double() for part in parts]

    words, others = torch.arange(65536), torch.arange(65536).flip(0)
    both = register(words, others)
    for dtype, base, added in ((torch.bfloat16, 0x43004300, 128), (torch.float16, 0x64006400, 1024)):
        for part in range(4):
            found = halves(both >> 4 * part & 0x000F000F | base, dtype)
            assert all(
                torch.equal(ours, (word >> 4 * part & 15).double() + added) for ours, word in zip(found, (words, others), strict=True)
            )
    for dtype, down, mask, factor in (
        (torch.bfloat16, 4, 0x07F007F0, E4M3_AS_BF16.value),
        (torch.float16, 1, 0x3F803F80, E4M3_AS_FP16.value),
    ):
        for part, up in enumerate((8, 0)):
            raised = (both << up) & 0xFFFFFFFF
            found = halves(raised >> down & mask | raised & 0x80008000, dtype)
            for ours, word in zip(found, (words, others), strict=True):
                code = (word >> 8 * part & 255).to(torch.uint8)
                number = code & 127 != 127
                assert torch.equal((ours * factor)[number], code.view(torch.float8_e4m3fn).double()[number])


# ---------------------------------------------------------------- within layers


@pytest.mark.parametrize("name", weights())
def test_a_linear_on_a_gpu_multiplies_what_its_weight_means(name: str, monkeypatch: pytest.MonkeyPatch):
    """By the kernel, and by a copy as for many rows, which is made in slices."""
    weight = weights()[name]
    outputs, inputs = weight.shape
    x, bias = torch.randn(3, inputs), torch.randn(outputs)
    linear = Linear(weight, bias)
    linear.pack(TritonOperators())
    assert isinstance(linear._product, WeightOnlyProduct)
    expected = torch.nn.functional.linear(x, weight.dequantized(torch.float32), bias)
    torch.testing.assert_close(linear(x), expected, atol=2e-5, rtol=1e-5)
    monkeypatch.setattr(cuda_linear, "DEQUANTIZED_ROWS", 2)
    monkeypatch.setattr(cuda_linear, "COPY_BYTES", (outputs // 2 - 1) * 4 * inputs)  # two slices and what is left
    monkeypatch.setattr(cuda_linear, "COPY_OUTPUTS", 7)
    torch.testing.assert_close(linear(x), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(linear._product(x, None), expected - bias, atol=2e-5, rtol=1e-5)


def test_an_int8_linear_rounds_its_rows_and_nothing_else():
    torch.manual_seed(0)
    weight = rounding.int8(torch.randn(40, 96))
    x, residual = torch.randn(3, 96), torch.randn(3, 40)
    linear = Linear(weight, None, gated=True)
    linear.pack(TritonOperators())
    values, scales = quantize_rows_reference(x)
    expected = (values.float() * scales[:, None]) @ weight.dequantized(torch.float32).T
    torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(linear.add(x, residual), residual + expected)
    first, second = expected.chunk(2, dim=1)
    torch.testing.assert_close(linear.silu_mul(x), torch.nn.functional.silu(first) * second)


def test_an_order_moves_the_inputs_once():
    torch.manual_seed(0)
    plain = int4_weight(24, 256, 64, zeros=True)
    weight = Int4Weight(plain.values, plain.scales, plain.zeros, order=torch.randperm(256))
    multiplied = quantized_product(weight)
    assert multiplied is not None
    x = torch.randn(2, 256)
    torch.testing.assert_close(multiplied(x, None), x @ weight.dequantized(torch.float32).T, atol=2e-5, rtol=1e-5)


def test_groups_that_no_kernel_takes_are_multiplied_by_torch():
    weight = int4_weight(8, 48, 16, zeros=True)
    assert quantized_product(weight) is None
    linear = Linear(weight)
    linear.pack(TritonOperators())
    x = torch.randn(2, 48)
    torch.testing.assert_close(linear(x), x @ weight.dequantized(torch.float32).T)


# ---------------------------------------------------------------- few rows of plain weights


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 6, 1024), (3, 5, 1100)])
def test_few_rows_are_multiplied_and_gated_in_one_pass(dtype: torch.dtype, rows: int, outputs: int, inputs: int):
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, inputs + 4).to(dtype)[:, :inputs], (torch.randn(2 * outputs, inputs) / inputs**0.5).to(dtype)
    for bias in (None, torch.randn(2 * outputs).to(dtype)):
        for gated in (False, True):
            close(few_rows_product(x, weight, bias, gated=gated), few_rows_product_reference(x, weight, bias, gated=gated))


def test_a_plain_weight_takes_the_kernel_for_few_rows_only():
    weight, asked = torch.randn(12, 64), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_linear, "few_rows_product", lambda x, *_, gated=False: asked.append((len(x), gated)) or x)
        product = FewRowsProduct(weight)
        for rows in (1, 4, 5):
            product(torch.randn(rows, 64), None)
        product.silu_mul(torch.randn(1, 64), None)
        close(product.silu_mul(x := torch.randn(7, 64), None), gate(torch.nn.functional.linear(x, weight)))
    assert asked == [(1, False), (4, False), (1, True)]
