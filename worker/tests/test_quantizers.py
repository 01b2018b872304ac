"""Quantizers of one weight: GPTQ and AWQ beside round to nearest, and 2:4 sparsity."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.quantization.awq import factors
from pagoda_worker.quantization.gptq import gptq
from pagoda_worker.quantization.grid import Recipe, nearest
from pagoda_worker.quantization.rounding import int4, int8
from pagoda_worker.quantization.sparsity import half_lost, is_two_of_four
from pagoda_worker.quantization.statistics import InputStatistics, output_error
from pagoda_worker.quantization.weights import Int4Weight, Int8Weight, QuantizedWeight


def recipe(to: str = "int4", *, group_size: int | None = 32, symmetric: bool = True, dtype: torch.dtype = torch.float32) -> Recipe:
    return Recipe(to=to, group_size=group_size if to == "int4" else None, symmetric=symmetric, scale_dtype=dtype)


def correlated(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    """Inputs as those of a model: few directions, and some channels far larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, size // 4, generator=generator) @ torch.randn(size // 4, size, generator=generator)
    sizes = torch.exp(1.5 * torch.randn(size, generator=generator))
    return (few + torch.randn(rows, size, generator=generator)) * sizes


def statistics(x: torch.Tensor) -> InputStatistics:
    made = InputStatistics(x.shape[1], x.device)
    for part in x.split(100):
        made.add(part)
    return made


INPUTS = correlated(512, 128)
WEIGHT = torch.randn(48, 128, generator=torch.Generator().manual_seed(1)) / 10
STATISTICS = statistics(INPUTS)


def error(weight: QuantizedWeight) -> float:
    return output_error(WEIGHT, weight.dequantized(torch.float32), STATISTICS.hessian)


def test_the_error_of_outputs_is_that_of_the_products_themselves():
    approximation = nearest(WEIGHT, recipe()).dequantized(torch.float32)
    difference = INPUTS @ (approximation - WEIGHT).T
    measured = float(difference.square().sum() / (INPUTS @ WEIGHT.T).square().sum())
    assert output_error(WEIGHT, approximation, STATISTICS.hessian) == pytest.approx(measured, rel=1e-3)
    torch.testing.assert_close(STATISTICS.sizes, INPUTS.abs().mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_round_to_nearest_is_that_of_loading(symmetric: bool):
    ours, theirs = nearest(WEIGHT, recipe(symmetric=symmetric)), int4(WEIGHT, 32, symmetric=symmetric)
    assert isinstance(ours, Int4Weight)
    assert torch.equal(ours.values, theirs.values)
    assert torch.equal(ours.dequantized(torch.float32), theirs.dequantized(torch.float32))
    eight = nearest(WEIGHT, recipe("int8"))
    assert isinstance(eight, Int8Weight)
    assert torch.equal(eight.values, int8(WEIGHT).values)


@pytest.mark.parametrize("to", ["int8", "int4"])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_beats_round_to_nearest_on_correlated_inputs(to: str, act_order: bool, symmetric: bool):
    wanted = recipe(to, symmetric=symmetric or to == "int8")
    calibrated = gptq(WEIGHT, STATISTICS.hessian, wanted, act_order=act_order)
    assert error(calibrated) < 0.6 * error(nearest(WEIGHT, wanted))


def test_gptq_on_independent_inputs_of_one_size_is_round_to_nearest():
    """Nothing can be made good elsewhere."""
    assert torch.equal(
        gptq(WEIGHT, torch.eye(128), recipe()).dequantized(torch.float32), nearest(WEIGHT, recipe()).dequantized(torch.float32)
    )


def test_inputs_that_never_speak_cost_nothing():
    silent = INPUTS.clone()
    silent[:, 3] = 0
    calibrated = gptq(WEIGHT, statistics(silent).hessian, recipe(symmetric=False)).dequantized(torch.float32)
    assert bool((calibrated[:, 3] == 0).all())
    assert bool(torch.isfinite(calibrated).all())


def test_act_order_leaves_groups_of_neighbours():
    """So that no kernel has to gather its inputs."""
    calibrated = gptq(WEIGHT, STATISTICS.hessian, recipe(), act_order=True)
    assert isinstance(calibrated, Int4Weight)
    assert calibrated.order is None


def test_awq_beats_round_to_nearest_and_is_never_worse():
    wanted = recipe(symmetric=False)
    by = factors([WEIGHT], STATISTICS.hessian, STATISTICS.sizes, wanted)
    scaled = nearest(WEIGHT * by, wanted).dequantized(torch.float32) / by
    assert output_error(WEIGHT, scaled, STATISTICS.hessian) < 0.8 * error(nearest(WEIGHT, wanted))
    even = torch.eye(128)
    by = factors([WEIGHT], even, torch.ones(128), wanted)
    assert torch.equal(by, torch.ones(128)), "inputs of one size have nothing to gain"


@given(seed=st.integers(0, 1000), symmetric=st.booleans())
def test_scales_are_those_that_can_be_stored(seed: int, symmetric: bool):
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    made = nearest(weight, recipe(symmetric=symmetric, dtype=torch.bfloat16))
    assert isinstance(made, Int4Weight)
    assert torch.equal(made.scales, made.scales.bfloat16().float())
    assert float((made.dequantized(torch.float32) - weight).abs().max()) <= 0.52 * float(made.scales.max()) + 0.07 * float(
        weight.abs().max()
    )


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_two_of_four_are_zero_and_the_hessian_chooses_them_better(to: str):
    wanted = recipe(to, symmetric=to == "int8")
    by_size = nearest(half_lost(WEIGHT), wanted)
    by_product = nearest(half_lost(WEIGHT, STATISTICS.sizes), wanted)
    calibrated = gptq(WEIGHT, STATISTICS.hessian, wanted, sparse=True)
    assert all(is_two_of_four(each.dequantized(torch.float32)) for each in (by_size, by_product, calibrated))
    assert error(calibrated) < error(by_product) < error(by_size)


def test_a_dense_weight_is_not_two_of_four():
    assert not is_two_of_four(WEIGHT)
