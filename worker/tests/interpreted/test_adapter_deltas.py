"""The grouped LoRA kernel in the interpreter against its reference: mixed adapters, ranks, parts, tokens of the base model."""

import pytest
import torch
from torch import Tensor

from pagoda_worker.kernels.adapter_deltas import add_deltas, add_deltas_reference

RANKS = [3, 0, 40, 1]
SLOTS = [0, -1, 2, 2, 3, 1, -1, *[2] * 12, 0, 3]
TOLERANCE = {torch.float32: (2e-5, 1e-5), torch.float16: (4e-3, 2**-9), torch.bfloat16: (4e-2, 2**-5)}
"""Absolute, relative. NOTE: the interpreter cuts bf16 off instead of rounding, here twice."""


def stacks(parts: tuple[int, ...], inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and ranks; rows past a rank are NaN: nobody may read them."""
    torch.manual_seed(inputs)
    a = torch.full((len(RANKS), len(parts), max(RANKS), inputs), float("nan"))
    b = torch.full((len(RANKS), max(RANKS), sum(parts)), float("nan"))
    for slot, rank in enumerate(RANKS):
        a[slot, :, :rank] = torch.randn(len(parts), rank, inputs) / inputs**0.5
        b[slot, :rank] = torch.randn(rank, sum(parts))
    return a.to(dtype), b.to(dtype), torch.tensor(RANKS, dtype=torch.int32)


@pytest.mark.parametrize(
    ("parts", "inputs", "dtype"),
    [
        ((40,), 64, torch.float32),
        ((40,), 64, torch.float16),
        ((96, 64, 64), 600, torch.float32),
        ((160, 160), 130, torch.float32),
        ((160, 160), 130, torch.bfloat16),
    ],
    ids=str,
)
def test_deltas_of_a_mixed_batch(parts: tuple[int, ...], inputs: int, dtype: torch.dtype):
    """One part, parts that share a program's columns, and inputs that are split."""
    a, b, ranks = stacks(parts, inputs, dtype)
    slots = torch.tensor(SLOTS, dtype=torch.int32)
    x, before = torch.randn(len(SLOTS), inputs + 8).to(dtype)[:, :inputs], torch.randn(len(SLOTS), sum(parts)).to(dtype)
    ours, theirs = before.clone(), before.clone()
    add_deltas(x, ours, a, b, ranks, slots, parts)
    add_deltas_reference(x, theirs, a, b, ranks, slots, parts)
    atol, rtol = TOLERANCE[dtype]
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=rtol)
    touched = (slots == 0) | (slots > 1)
    assert torch.equal(ours[~touched], before[~touched]), "no adapter, or one that does not touch this product"
    assert (ours[touched] != before[touched]).any(dim=1).all()


def test_a_tokens_delta_does_not_depend_on_its_neighbours():
    parts, inputs = (48, 16), 96
    a, b, ranks = stacks(parts, inputs, torch.float32)
    slots = torch.tensor(SLOTS, dtype=torch.int32)
    x, whole = torch.randn(len(SLOTS), inputs), torch.zeros(len(SLOTS), 64)
    add_deltas(x, whole, a, b, ranks, slots, parts)
    alone = torch.zeros_like(whole)
    for at in (0, 3, 4, 20):
        add_deltas(x[at : at + 1], alone[at : at + 1], a, b, ranks, slots[at : at + 1], parts)
        torch.testing.assert_close(alone[at], whole[at])


def test_the_reference_is_b_times_a():
    a, b, ranks = stacks((6, 4), 32, torch.float32)
    x, y = torch.randn(2, 32), torch.zeros(2, 10)
    add_deltas_reference(x, y, a, b, ranks, torch.tensor([0, -1], dtype=torch.int32), (6, 4))
    expected = torch.cat([b[0, :3, :6].T @ (a[0, 0, :3] @ x[0]), b[0, :3, 6:].T @ (a[0, 1, :3] @ x[0])])
    torch.testing.assert_close(y[0], expected)
    assert not y[1].any()
