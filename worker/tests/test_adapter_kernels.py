"""The CPU's kernel for LoRA deltas against its torch reference, for every instruction set that this machine has."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from pagoda_worker.layers.adapters import (
    AdapterRoom,
    AdapterRows,
    AdapterSide,
    AdapterStack,
    StackedSide,
    add_deltas_reference,
)
from pagoda_worker.layers.linear import Linear, gate
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.native_adapters import NativeSide
from pagoda_worker.native.build import library_path
from pagoda_worker.native.library import cpu_flags, load_library, usable
from pagoda_worker.quantization.rounding import Format, rounded

ISAS = usable(cpu_flags())
pytestmark = pytest.mark.skipif(
    not ISAS or not library_path(ISAS[0]).exists(),
    reason="no CPU kernels: Debian's g++ was missing at installation",
)
PARTS = [(96,), (64, 32, 32), (560, 560)]
TOLERANCE = {torch.float32: {"atol": 1e-4, "rtol": 1e-5}, torch.bfloat16: {"atol": 8e-2, "rtol": 2**-7}}
Touched = Mapping[int, tuple[Tensor, Tensor]]


def operators_of(isa: str, threads: int = 2) -> NativeOperators:
    library = load_library(isa)
    assert library is not None
    library.use_threads(threads)
    return NativeOperators(library)


def room_of(parts: tuple[int, ...], size: int, slots: int, dtype: torch.dtype) -> AdapterRoom:
    return AdapterRoom(size=size, parts=parts, slots=slots, max_rank=64, dtype=dtype, device=torch.device("cpu"))


def random_touched(room: AdapterRoom, rank: int, parts: Sequence[int]) -> Touched:
    """Of size such that what it adds is about 1."""
    return {
        part: (
            (torch.randn(rank, room.size) / room.size**0.5).to(room.dtype),
            (torch.randn(rank, room.parts[part]) / rank**0.5).to(room.dtype),
        )
        for part in parts
    }


def sides_of(operators: NativeOperators, linear: Linear, room: AdapterRoom, rows: AdapterRows, ranks: list[int]) -> list[AdapterSide]:
    """Ours and the reference in float32, with the same adapters. Those in slots past the first do not touch every part."""
    wide = AdapterRoom(size=room.size, parts=room.parts, slots=room.slots, max_rank=64, dtype=torch.float32, device=room.device)
    sides = [operators.adapter_side(linear, room, rows), StackedSide(AdapterStack.of(wide), rows, add_deltas_reference)]
    for slot, rank in enumerate(ranks):
        parts = range(slot % len(room.parts), len(room.parts)) if rank else ()
        touched = random_touched(room, rank, parts)
        for side in sides:
            side.place(slot, rank, touched)
    return sides


def rows_of(slots: list[int]) -> AdapterRows:
    return AdapterRows(torch.tensor(slots, dtype=torch.int32))


def added(side: AdapterSide, x: Tensor, y: Tensor) -> Tensor:
    y = y.clone()
    side.add(x, y)
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_deltas_of_a_mixed_batch_equal_the_reference(isa: str, dtype: torch.dtype, parts: tuple[int, ...]):
    torch.manual_seed(0)
    slots = [0, -1, 1, 1, 3, 2, 1, -1, 3, 1, 1, 0, *[3] * 20, 1, 4, 4, 5, 4]
    room, rows = room_of(parts, 160, 6, dtype), rows_of(slots)
    ours, reference = sides_of(operators_of(isa), Linear(None), room, rows, [1, 16, 0, 7, 33, 64])
    x, y = torch.randn(len(slots), 160).to(dtype), torch.randn(len(slots), sum(parts)).to(dtype)
    result = added(ours, x, y)
    torch.testing.assert_close(result.float(), added(reference, x.float(), y.float()), **TOLERANCE[dtype])
    untouched = [at for at, slot in enumerate(slots) if slot in (-1, 2)]
    assert torch.equal(result[untouched], y[untouched])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ranks", [[8, 5], [48, 64]], ids=str)
def test_a_rows_delta_does_not_depend_on_its_batch(isa: str, ranks: list[int]):
    torch.manual_seed(0)
    slots = [0, 1, 0, 0, 1, 0, 0, *[1] * 18]
    operators, room, rows = operators_of(isa), room_of((64, 32, 32), 96, 2, torch.bfloat16), rows_of(slots)
    ours, _ = sides_of(operators, Linear(None), room, rows, ranks)
    x, y = torch.randn(len(slots), 96).bfloat16(), torch.randn(len(slots), 128).bfloat16()
    whole = added(ours, x, y)
    for at, slot in enumerate(slots):
        rows.slots = torch.tensor([slot], dtype=torch.int32)
        assert torch.equal(added(ours, x[at : at + 1], y[at : at + 1])[0], whole[at])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", [None, "int8", "int4", "fp8"])
def test_a_product_takes_deltas_along_as_if_they_came_after_it(isa: str, form: Format | None):
    torch.manual_seed(0)
    operators, rows, room = operators_of(isa), rows_of([0, -1, 1, 0]), room_of((64, 32), 128, 2, torch.bfloat16)
    weight, x, residual = torch.randn(96, 128).bfloat16() / 8, torch.randn(4, 128).bfloat16(), torch.randn(4, 96).bfloat16()
    linear = Linear(weight if form is None else rounded(weight, form))
    linear.pack(operators)
    plain, with_residual = linear(x), linear.add(x, residual)
    torch.manual_seed(1)
    after, _ = sides_of(operators, Linear(None), room, rows, [4, 6])
    torch.manual_seed(1)
    linear.adapters, _ = sides_of(operators, linear, room, rows, [4, 6])
    assert not linear.adapters.apart
    for adapted, product in ((linear(x), plain), (linear.add(x, residual), with_residual)):
        rounding = 1e-2 if form in (None, "fp8") else 3e-2  # beside int8 and int4 the deltas, of about 1, are rounded to bytes too
        torch.testing.assert_close(adapted, added(after, x, product), atol=rounding, rtol=2**-6)  # some round once, some twice
        assert not torch.allclose(adapted[0], product[0], atol=0.1)
        assert torch.equal(adapted[1], product[1])
    linear.adapters.release()
    assert torch.equal(linear(x), plain)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 6, 16, 64])
def test_deltas_beside_an_int8_weight_are_rounded_no_worse_than_it_though_ranks_differ_in_size(isa: str, dtype: torch.dtype, rank: int):
    torch.manual_seed(0)
    size, parts = 256, (96, 64)
    operators, rows, room = operators_of(isa), rows_of([0] * 8), room_of(parts, size, 1, dtype)
    weight, x = torch.randn(160, size) / size**0.5, torch.randn(8, size).to(dtype)
    linear = Linear(rounded(weight, "int8"))
    linear.pack(operators)
    base = linear(x)
    sizes = 10 ** torch.linspace(-3, 3, rank)  # of A's ranks, which B takes back
    touched = {part: (a * sizes[:, None], b / sizes[:, None]) for part, (a, b) in random_touched(room, rank, (0, 1)).items()}
    linear.adapters = operators.adapter_side(linear, room, rows)
    linear.adapters.place(0, rank, {part: (a.to(dtype), b.to(dtype)) for part, (a, b) in touched.items()})
    deltas = torch.cat([x.float() @ touched[part][0].float().T @ touched[part][1].float() for part in (0, 1)], dim=1)
    wrong = (linear(x) - base).float() - deltas
    assert wrong.norm() / deltas.norm() < 0.02
    assert wrong.norm() > 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", [None, "int8", "int4", "fp8"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_an_adapted_products_row_is_the_same_in_any_batch(isa: str, form: Format | None, gated: bool):
    """Of no other row, nor of how many there are; also where k comes in blocks and columns end within a panel."""
    torch.manual_seed(0)
    parts, size = ((96, 96), 128) if gated else ((96, 48, 32), 1152)
    slots = [0, 1, -1, 2, 3, 0, 0, 1, 1, 2, 2, -1, *[1] * 30, 0, 3, 3, 2, 1, -1]
    operators, rows = operators_of(isa), rows_of(slots)
    weight, x = torch.randn(sum(parts), size).bfloat16() / size**0.5, torch.randn(len(slots), size).bfloat16()
    linear = Linear(weight if form is None else rounded(weight, form), gated=gated)
    linear.pack(operators)
    linear.adapters, reference = sides_of(operators, linear, room_of(parts, size, 4, torch.bfloat16), rows, [16, 5, 40, 64])
    product = linear.silu_mul if gated else linear
    together = product(x)
    if form is None:
        expected = x.float() @ weight.float().T
        reference.add(x.float(), expected)
        torch.testing.assert_close(together.float(), gate(expected) if gated else expected, atol=8e-2, rtol=2**-6)
    for first, count in ((0, 1), (1, 1), (2, 1), (3, 1), (4, 13), (5, 20), (40, 8)):
        rows.slots = torch.tensor(slots[first : first + count], dtype=torch.int32)
        assert torch.equal(product(x[first : first + count]), together[first : first + count])


@pytest.mark.parametrize("isa", ISAS)
def test_a_gated_products_delta_comes_before_the_silu(isa: str):
    torch.manual_seed(0)
    slots = [0, -1, 0, *[1] * 700]
    operators, rows = operators_of(isa), rows_of(slots)
    weight, bias = torch.randn(192, 64).bfloat16() / 8, torch.randn(192).bfloat16()
    linear = Linear(weight.clone(), bias, gated=True)
    linear.pack(operators)
    x = torch.randn(len(slots), 64).bfloat16()
    fused = linear.silu_mul(x)
    linear.adapters, reference = sides_of(operators, linear, room_of((96, 96), 64, 2, torch.bfloat16), rows, [4, 2])
    both = x.float() @ weight.float().T + bias.float()
    reference.add(x.float(), both)
    for adapted in (linear.silu_mul(x), operators.silu_mul(linear, x), gate(linear(x))):
        torch.testing.assert_close(adapted.float(), gate(both), atol=8e-2, rtol=2**-6)
        torch.testing.assert_close(adapted[1], fused[1], atol=3e-2, rtol=2**-6)


def test_an_empty_slot_takes_no_memory_and_an_adapter_what_its_rank_needs():
    library = load_library()
    assert library is not None
    room = room_of((64, 64), 128, 16, torch.bfloat16)
    side = NativeSide(library, room, AdapterRows(), None)
    assert side.nbytes == 0
    side.place(3, 16, random_touched(room, 16, (1,)))
    assert 0 <= side.nbytes - 16 * (128 + 64) * 2 <= 1024
    side.place(3, 16, {})
    assert side.nbytes == 0
    assert not side.used
