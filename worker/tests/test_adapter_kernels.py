"""The CPU's kernel for LoRA deltas against its torch reference, for every instruction set that this machine has."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterRows, AdapterSide, AdapterStack, add_deltas_reference, new_stack
from pagoda_worker.layers.linear import Linear, gate
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.native.build import library_path
from pagoda_worker.native.library import cpu_flags, load_library, usable

ISAS = usable(cpu_flags())
pytestmark = pytest.mark.skipif(
    not ISAS or not library_path(ISAS[0]).exists(),
    reason="no CPU kernels: Debian's g++ was missing at installation",
)
PARTS = [(96,), (64, 32, 32), (560, 560)]
TOLERANCE = {torch.float32: {"atol": 1e-4, "rtol": 1e-5}, torch.bfloat16: {"atol": 6e-2, "rtol": 2**-7}}


def operators_of(isa: str, threads: int = 2) -> NativeOperators:
    library = load_library(isa)
    assert library is not None
    library.use_threads(threads)
    return NativeOperators(library)


def stack_of(parts: tuple[int, ...], size: int, ranks: list[int], dtype: torch.dtype) -> AdapterStack:
    """Rows past a rank are NaN: nobody may read them."""
    stack = new_stack(
        size=size, parts=parts, slots=len(ranks), max_rank=16,
        empty=lambda shape: torch.full(shape, float("nan"), dtype=dtype), device=torch.device("cpu"),
    )  # fmt: skip
    for slot, rank in enumerate(ranks):
        stack.ranks[slot] = rank
        stack.a[slot, :, :rank] = torch.randn(len(parts), rank, size) / size**0.5
        stack.b[slot, :rank] = torch.randn(rank, sum(parts))
    return stack


def rows_of(slots: list[int]) -> AdapterRows:
    return AdapterRows(torch.tensor(slots, dtype=torch.int32))


def added(operators: NativeOperators, x: Tensor, y: Tensor, stack: AdapterStack, rows: AdapterRows) -> Tensor:
    y = y.clone()
    operators.add_deltas(x, y, stack, rows)
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_deltas_of_a_mixed_batch_equal_the_reference(isa: str, dtype: torch.dtype, parts: tuple[int, ...]):
    torch.manual_seed(0)
    operators, stack = operators_of(isa), stack_of(parts, 64, [1, 16, 0, 7], dtype)
    slots = [0, -1, 1, 1, 3, 2, 1, -1, 3, 1, 1, 0, *[3] * 20, 1]
    x, y = torch.randn(len(slots), 64).to(dtype), torch.randn(len(slots), sum(parts)).to(dtype)
    expected = y.float().clone()
    add_deltas_reference(x.float(), expected, replace(stack, a=stack.a.float(), b=stack.b.float()), rows_of(slots))
    torch.testing.assert_close(added(operators, x, y, stack, rows_of(slots)).float(), expected, **TOLERANCE[dtype])
    untouched = [at for at, slot in enumerate(slots) if slot in (-1, 2)]
    assert torch.equal(added(operators, x, y, stack, rows_of(slots))[untouched], y[untouched])


@pytest.mark.parametrize("isa", ISAS)
def test_a_rows_delta_does_not_depend_on_its_batch(isa: str):
    torch.manual_seed(0)
    operators, stack = operators_of(isa), stack_of((64, 32, 32), 96, [8, 5], torch.bfloat16)
    slots = [0, 1, 0, 0, 1, 0, 0]
    x, y = torch.randn(7, 96).bfloat16(), torch.randn(7, 128).bfloat16()
    whole = added(operators, x, y, stack, rows_of(slots))
    for at, slot in enumerate(slots):
        assert torch.equal(added(operators, x[at : at + 1], y[at : at + 1], stack, rows_of([slot]))[0], whole[at])


@pytest.mark.parametrize("isa", ISAS)
def test_a_gated_products_delta_comes_before_the_silu(isa: str):
    torch.manual_seed(0)
    operators, rows = operators_of(isa), rows_of([0, -1, 0])
    weight, bias = torch.randn(192, 64).bfloat16() / 8, torch.randn(192).bfloat16()
    stack = stack_of((96, 96), 64, [4], torch.bfloat16)
    product = Linear(weight.clone(), bias, gated=True)
    product.pack(operators)
    x = torch.randn(3, 64).bfloat16()
    fused = product.silu_mul(x)
    product.adapters = AdapterSide(stack, rows, operators.add_deltas)
    both = x.float() @ weight.float().T + bias.float()
    both[[0, 2]] += torch.cat(
        [x[[0, 2]].float() @ stack.a[0, p, :4].float().T @ stack.b[0, :4, p * 96 : p * 96 + 96].float() for p in (0, 1)], 1
    )
    for adapted in (product.silu_mul(x), operators.silu_mul(product, x)):
        torch.testing.assert_close(adapted.float(), gate(both), atol=6e-2, rtol=2**-6)
        torch.testing.assert_close(adapted[1], fused[1], atol=3e-2, rtol=2**-6)
