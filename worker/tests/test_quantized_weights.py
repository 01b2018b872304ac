"""What each quantized form means, by hand."""

import torch

from pagoda_worker.quantization.weights import Fp8Weight, Int4Weight, Int8Weight


def test_int8_is_a_value_times_its_channels_scale() -> None:
    weight = Int8Weight(torch.tensor([[1, -2], [127, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0]))
    assert weight.shape == (2, 2)
    assert weight.dequantized(torch.float32).tolist() == [[0.5, -1.0], [254.0, 0.0]]


def test_int4_has_the_even_input_in_the_low_nibble_and_a_zero_point_per_group() -> None:
    values = torch.tensor([[0x98, 0x0F]], dtype=torch.uint8)
    scales = torch.tensor([[1.0, 10.0]])
    assert Int4Weight(values, scales).shape == (1, 4)
    assert Int4Weight(values, scales).dequantized(torch.float32).tolist() == [[0.0, 1.0, 70.0, -80.0]]
    zeros = torch.tensor([[0, 15]], dtype=torch.uint8)
    assert Int4Weight(values, scales, zeros).dequantized(torch.float32).tolist() == [[8.0, 9.0, 0.0, -150.0]]


def test_an_order_says_which_input_each_column_is_for() -> None:
    values = torch.tensor([[0x98, 0xBA]], dtype=torch.uint8)
    weight = Int4Weight(values, torch.ones(1, 2), order=torch.tensor([3, 0, 2, 1]))
    assert weight.dequantized(torch.float32).tolist() == [[1.0, 3.0, 2.0, 0.0]]


def test_fp8_scales_are_of_blocks_of_which_the_last_may_be_cut() -> None:
    weight = Fp8Weight(torch.ones(3, 3).to(torch.float8_e4m3fn), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (2, 2))
    assert weight.dequantized(torch.float32).tolist() == [[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 3.0, 4.0]]
