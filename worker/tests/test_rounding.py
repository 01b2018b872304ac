"""Plain weights rounded to each form, joined and cut: how far off they may be, and that putting together changes no number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagoda_worker.layers.attention import attend_sdpa
from pagoda_worker.layers.linear import Linear, gate
from pagoda_worker.layers.operators import Operators
from pagoda_worker.quantization.parts import inputs_of, joined, outputs_of
from pagoda_worker.quantization.rounding import Format, fitting_group, fp8, int4, int8, rounded
from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, QuantizedWeight

FORMATS: tuple[Format, ...] = ("int8", "int4", "fp8")
weights = st.builds(
    lambda out, groups, seed, spread: torch.randn(out, 32 * groups, generator=torch.Generator().manual_seed(seed)) * 10.0**spread,
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 1 << 30),
    st.integers(-6, 4),
)


def exact(weight: QuantizedWeight | None) -> Tensor:
    assert weight is not None
    return weight.dequantized(torch.float32)


@settings(max_examples=50, deadline=None)
@given(weights)
def test_int8_is_off_by_at_most_half_a_step(weight: Tensor) -> None:
    quantized = int8(weight)
    assert torch.all((exact(quantized) - weight).abs() <= quantized.scales[:, None] * 0.5001)


@settings(max_examples=50, deadline=None)
@given(weights, st.booleans())
def test_int4_is_off_by_at_most_half_a_step(weight: Tensor, symmetric: bool) -> None:
    quantized = int4(weight, 32, symmetric=symmetric)
    assert torch.all((exact(quantized) - weight).abs() <= quantized.scales.repeat_interleave(32, 1) * 0.501)


@settings(max_examples=50, deadline=None)
@given(weights)
def test_fp8_is_off_by_at_most_a_sixteenth_or_half_its_smallest_step(weight: Tensor) -> None:
    quantized = fp8(weight)
    allowed = torch.maximum(weight.abs() / 16, quantized.scales * 2.0**-10) * 1.001
    assert torch.all((exact(quantized) - weight).abs() <= allowed)


@pytest.mark.parametrize("to", FORMATS)
def test_a_row_of_zeros_stays_zeros(to: Format) -> None:
    assert exact(rounded(torch.zeros(2, 64), to)).tolist() == torch.zeros(2, 64).tolist()


def test_the_group_is_halved_until_it_fits() -> None:
    assert [fitting_group(size) for size in (256, 192, 96, 48)] == [128, 64, 32, None]
    assert rounded(torch.ones(2, 48), "int4") is None


def test_a_zero_point_halves_nothing_but_lowers_the_error() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 512)
    errors = [(exact(int4(weight, 128, symmetric=symmetric)) - weight).square().mean() for symmetric in (False, True)]
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("to", FORMATS)
def test_joined_weights_mean_what_their_parts_mean(to: Format) -> None:
    torch.manual_seed(0)
    parts = [rounded(torch.randn(out, 256), to) for out in (4, 2, 7)]
    whole = joined([part for part in parts if part is not None])
    assert torch.equal(exact(whole), torch.cat([exact(part) for part in parts]))
    assert whole is not None
    assert torch.equal(exact(outputs_of(whole, 3, 9)), exact(whole)[3:9])
    assert torch.equal(exact(inputs_of(whole, 128, 256)), exact(whole)[:, 128:])


def test_fp8_of_one_scale_and_of_squares_can_be_joined_and_cut() -> None:
    torch.manual_seed(0)

    def squares(out: int, block: tuple[int, int]) -> Fp8Weight:
        shape = (-(-out // block[0]), -(-256 // block[1]))
        return Fp8Weight(torch.randn(out, 256).to(torch.float8_e4m3fn), torch.rand(shape) + 0.5, block)

    for parts in ([squares(8, (8, 256)), squares(6, (6, 256))], [squares(64, (64, 64)), squares(128, (64, 64))], [squares(5, (4, 64))] * 2):
        whole = joined(parts)
        assert torch.equal(exact(whole), torch.cat([exact(part) for part in parts]))
        assert whole is not None
        assert torch.equal(exact(outputs_of(whole, 1, 7)), exact(whole)[1:7])
        assert torch.equal(exact(inputs_of(whole, 64, 256)), exact(whole)[:, 64:])
    with pytest.raises(ValueError, match="whole blocks of 64"):
        inputs_of(squares(64, (64, 64)), 32, 64)


def test_weights_of_other_groups_or_orders_stay_apart() -> None:
    one = int4(torch.randn(4, 128), 64)
    ordered = Int4Weight(one.values, one.scales, one.zeros, torch.randperm(128))
    assert joined([one, int4(torch.randn(4, 128), 32)]) is None
    assert joined([one, ordered]) is None
    assert joined([one, int8(torch.randn(4, 128))]) is None
    assert joined([ordered, ordered]) is not None
    with pytest.raises(ValueError, match="act-order"):
        inputs_of(ordered, 0, 64)
    with pytest.raises(ValueError, match="whole groups of 64"):
        inputs_of(one, 0, 32)


@pytest.mark.parametrize("to", FORMATS)
def test_a_linear_of_a_quantized_weight_multiplies_by_what_it_means(to: Format) -> None:
    torch.manual_seed(0)
    weight, bias, x, residual = rounded(torch.randn(12, 64), to), torch.randn(12), torch.randn(3, 64), torch.randn(3, 12)
    linear = Linear(weight, bias, gated=True)
    linear.pack(Operators(attend_sdpa))
    expected = x @ exact(weight).T + bias
    torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(linear.add(x, residual), expected + residual)
    torch.testing.assert_close(linear.silu_mul(x), gate(expected))


def test_parts_that_cannot_be_one_are_multiplied_side_by_side() -> None:
    torch.manual_seed(0)
    parts = int4(torch.randn(4, 128), 64), int4(torch.randn(6, 128), 32)
    bias, x, residual = torch.randn(10), torch.randn(3, 128), torch.randn(3, 10)
    linear = Linear(parts[0], bias)
    linear.weight = parts
    linear.pack(Operators(attend_sdpa))
    expected = x @ torch.cat([exact(part) for part in parts]).T + bias
    torch.testing.assert_close(linear(x), expected)
    torch.testing.assert_close(linear.add(x, residual), expected + residual)
