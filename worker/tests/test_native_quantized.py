"""The CPU's kernels of quantized weights against what the weights mean, for every instruction set that this machine has: ragged sizes,
edges, and that a row's result does not depend on its batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.linear import Linear, Product
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.native_quantized import Fp8NativeProduct, QuantizedNativeProduct
from pagoda_worker.native.build import library_path
from pagoda_worker.native.library import cpu_flags, load_library, usable
from pagoda_worker.quantization.rounding import fp8, int4, int8
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, QuantizedWeight

ISAS = usable(cpu_flags())
pytestmark = pytest.mark.skipif(
    not ISAS or not library_path(ISAS[0]).exists(),
    reason="no CPU kernels: Debian's g++ was missing at installation",
)
ROWS = (1, 2, 5, 16, 17, 31, 33, 70)
FORMS: dict[str, Any] = {
    "int8": int8,
    "int4, one group": lambda weight: int4(weight, weight.shape[1]),
    "int4, groups of 128": lambda weight: int4(weight, 128),
    "int4, groups of 64, symmetric": lambda weight: int4(weight, 64, symmetric=True),
    "int4, groups of 32": lambda weight: int4(weight, 32),
    "int4, groups of 16": lambda weight: int4(weight, 16),
}
CASES = [
    *(("int8", shape) for shape in ((96, 64), (50, 32), (1000, 256), (33, 100), (64, 2080))),
    *(("int4, one group", shape) for shape in ((96, 64), (50, 100))),
    *(("int4, groups of 128", shape) for shape in ((70, 256), (96, 4096))),
    *(("int4, groups of 64, symmetric", shape) for shape in ((50, 192), (32, 64))),
    *(("int4, groups of 32", shape) for shape in ((96, 96), (40, 256))),
    ("int4, groups of 16", (96, 80)),
]


def operators_of(isa: str) -> NativeOperators:
    library = load_library(isa)
    assert library is not None
    library.use_threads(torch.get_num_threads())
    return NativeOperators(library)


def packed(
    isa: str, weight: QuantizedWeight, bias: Tensor | None = None, *, gated: bool = False, form: type = QuantizedNativeProduct
) -> Linear:
    linear = Linear(weight, bias, gated=gated)
    linear.pack(operators_of(isa))
    product: Product | None = linear._product
    assert isinstance(product, form)
    return linear


def product_of(weight: QuantizedWeight, x: Tensor) -> Tensor:
    """In double precision, of activations rounded as the kernels round them."""
    wide = x.float()
    scales = (wide.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    whole = (wide * (1 / scales)).round()
    return (whole.double() * scales.double()) @ weight.dequantized(torch.float64).T


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("form", "shape"), CASES, ids=str)
def test_products_are_of_what_the_weight_means(isa: str, form: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    out, size = shape
    weight, bias = FORMS[form](torch.randn(out, size)), torch.randn(out)
    product = packed(isa, weight, bias)
    for rows in ROWS:
        x, residual = torch.randn(rows, size), torch.randn(rows, out)
        exact = product_of(weight, x) + bias
        allowed = 1e-5 * float(exact.abs().max())
        torch.testing.assert_close(product(x).double(), exact, atol=allowed, rtol=1e-5)
        torch.testing.assert_close(product.add(x, residual).double(), exact + residual, atol=2 * allowed, rtol=1e-5)
        wide = torch.randn(rows, size + 8)
        torch.testing.assert_close(product(wide[:, 4:-4]), product(wide[:, 4:-4].contiguous()), atol=0, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["int8", "int4, groups of 64, symmetric"])
def test_bf16_comes_in_and_goes_out_rounded_once(isa: str, form: str) -> None:
    torch.manual_seed(0)
    weight, bias = FORMS[form](torch.randn(70, 128)), torch.randn(70).bfloat16()
    product = packed(isa, weight, bias)
    for rows in ROWS:
        x, residual = torch.randn(rows, 128).bfloat16(), torch.randn(rows, 70).bfloat16()
        exact = product_of(weight, x) + bias
        torch.testing.assert_close(product(x).double(), exact, atol=1e-3, rtol=2**-8)
        torch.testing.assert_close(product.add(x, residual).double(), exact + residual, atol=1e-3, rtol=2**-8)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["int8", "int4, groups of 32"])
def test_a_gated_product_is_silu_of_one_half_times_the_other(isa: str, form: str) -> None:
    torch.manual_seed(0)
    weight, bias = FORMS[form](torch.randn(192, 64) / 8), torch.randn(192)
    product = packed(isa, weight, bias, gated=True)
    for rows in (1, 20, 70):
        x = torch.randn(rows, 64)
        first, second = (product_of(weight, x) + bias).chunk(2, dim=-1)
        torch.testing.assert_close(product.silu_mul(x).double(), F.silu(first) * second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["int8", "int4, groups of 128", "int4, groups of 32"])
def test_a_rows_product_does_not_depend_on_its_batch(isa: str, form: str) -> None:
    torch.manual_seed(0)
    product = packed(isa, FORMS[form](torch.randn(160, 1024)))
    x = torch.randn(600, 1024).bfloat16()
    whole = product(x)
    for rows in (1, 3, 16, 17, 64, 257):
        assert torch.equal(product(x[:rows]), whole[:rows])
    assert torch.equal(product(x[590:]), whole[590:])


@pytest.mark.parametrize("form", ["int8", "int4, groups of 128", "int4, groups of 32"])
def test_every_instruction_set_gives_the_same_bits(form: str) -> None:
    torch.manual_seed(0)
    weight, x = FORMS[form](torch.randn(96, 256)), torch.randn(40, 256)
    products = [packed(isa, weight)(x) for isa in ISAS]
    assert all(torch.equal(product, products[0]) for product in products)


@pytest.mark.parametrize("isa", ISAS)
def test_act_order_permutes_the_inputs(isa: str) -> None:
    torch.manual_seed(0)
    weight = replace(int4(torch.randn(64, 256), 64), order=torch.randperm(256))
    x = torch.randn(20, 256)
    exact = product_of(weight, x)
    torch.testing.assert_close(packed(isa, weight)(x).double(), exact, atol=1e-5 * float(exact.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_zeros_and_fp16_have_products_too(isa: str) -> None:
    torch.manual_seed(0)
    weight = int8(torch.randn(64, 64))
    product = packed(isa, weight)
    assert product(torch.zeros(3, 64)).tolist() == torch.zeros(3, 64).tolist()
    x = torch.randn(3, 64).half()
    torch.testing.assert_close(product(x).double(), product_of(weight, x), atol=2e-2, rtol=2**-9)


def every_fp8() -> Fp8Weight:
    """All 256 bytes but the two NaNs, the smallest numbers among them."""
    bytes_ = torch.arange(256, dtype=torch.uint8).view(4, 64).clone()
    bytes_[bytes_ & 0x7F == 0x7F] = 0
    return Fp8Weight(bytes_.view(torch.float8_e4m3fn), torch.ones(4, 1), (1, 64))


def blocks_of_fp8(out: int, size: int, block: tuple[int, int]) -> Fp8Weight:
    scales = torch.rand(-(-out // block[0]), -(-size // block[1])) + 0.5
    return Fp8Weight(torch.randn(out, size).to(torch.float8_e4m3fn), scales, block)


@pytest.mark.parametrize("isa", ISAS)
def test_every_number_of_fp8_is_multiplied_as_it_is(isa: str) -> None:
    weight = every_fp8()
    product = packed(isa, weight, form=Fp8NativeProduct)
    one = torch.eye(64).bfloat16()
    assert torch.equal(product(one), weight.dequantized(torch.bfloat16).T)


def test_nan_among_fp8_numbers_is_left_to_torch() -> None:
    values = torch.full((32, 32), float("nan")).to(torch.float8_e4m3fn)
    linear = Linear(Fp8Weight(values, torch.ones(32, 1), (1, 32)))
    linear.pack(operators_of(ISAS[0]))
    assert linear(torch.ones(1, 32).bfloat16()).isnan().all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(96, 64), (50, 32), (1000, 256), (64, 2080)], ids=str)
@pytest.mark.parametrize("blocks", ["a channel", "the whole", "squares"])
def test_products_of_fp8_are_of_what_the_weight_means(isa: str, shape: tuple[int, int], blocks: str) -> None:
    torch.manual_seed(0)
    out, size = shape
    weight = {"a channel": lambda: fp8(torch.randn(out, size)), "the whole": lambda: blocks_of_fp8(out, size, shape)}.get(
        blocks, lambda: blocks_of_fp8(out, size, (64, 32))
    )()
    bias = torch.randn(out).bfloat16()
    product = packed(isa, weight, bias, form=Fp8NativeProduct)
    for rows in (*ROWS, 200):
        x, residual = torch.randn(rows, size).bfloat16(), torch.randn(rows, out).bfloat16()
        exact = x.double() @ weight.dequantized(torch.float64).T + bias.double()
        allowed = 1e-5 * float(exact.abs().max())
        torch.testing.assert_close(product(x).double(), exact, atol=allowed, rtol=2**-8)
        torch.testing.assert_close(product.add(x, residual).double(), exact + residual.double(), atol=2 * allowed, rtol=2**-8)
        wide = torch.randn(rows, size + 8).bfloat16()
        torch.testing.assert_close(product(wide[:, 4:-4]), product(wide[:, 4:-4].contiguous()), atol=0, rtol=0)
        assert torch.equal(product(x[rows // 2 :]), product(x)[rows // 2 :])


@pytest.mark.parametrize("isa", ISAS)
def test_fp8_is_gated_and_takes_other_types(isa: str) -> None:
    torch.manual_seed(0)
    weight, bias = fp8(torch.randn(192, 64) / 8), torch.randn(192)
    product = packed(isa, weight, bias, gated=True, form=Fp8NativeProduct)
    for rows in (1, 20, 70):
        x = torch.randn(rows, 64)
        exact = x.bfloat16().double() @ weight.dequantized(torch.float64).T + bias.bfloat16().double()
        first, second = exact.chunk(2, dim=-1)
        torch.testing.assert_close(product.silu_mul(x).double(), F.silu(first) * second, atol=2e-2, rtol=2**-7)
        torch.testing.assert_close(product(x).double(), exact, atol=2e-2, rtol=2**-7)
        residual = torch.randn(rows, 192)
        torch.testing.assert_close(packed(isa, weight, bias, form=Fp8NativeProduct).add(x, residual), product(x) + residual)


def test_panels_are_no_larger_than_what_they_hold() -> None:
    """The promise of the format: int8 at most 0.55, int4 at most 0.35 of bf16."""
    weight = torch.randn(1024, 1024)
    plain = weight.bfloat16().nbytes

    def held(weight: QuantizedWeight) -> int:
        form = Fp8NativeProduct if isinstance(weight, Fp8Weight) else QuantizedNativeProduct
        product = packed(ISAS[0], weight, form=form)._product
        tensors = [getattr(product, name, None) for name in ("_values", "_scales", "_zeros")]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    assert held(int8(weight)) <= 0.51 * plain
    assert held(fp8(weight)) <= 0.51 * plain
    assert held(int4(weight, 128)) <= 0.28 * plain
    assert held(int4(weight, 32)) <= 0.35 * plain
    assert isinstance(int4(weight, 32), Int4Weight)
