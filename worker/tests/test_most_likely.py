"""The largest of each row by its bits, against torch's own comparison."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.sampling.most_likely import most_likely

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 1.0, -1.0, 2.0, -2.0, 1e-6, -1e-6]
value = st.one_of(st.sampled_from(SPECIAL), st.floats(-100, 100, width=16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@given(rows=st.integers(1, 40).flatmap(lambda width: st.lists(st.lists(value, min_size=width, max_size=width), min_size=1, max_size=4)))
def test_it_is_what_torch_says_of_any_numbers(dtype: torch.dtype, rows: list[list[float]]):
    values = torch.tensor(rows).to(dtype)
    best, expected = values.max(dim=-1)
    ids, finite = most_likely(values)
    assert finite.tolist() == best.isfinite().tolist()
    assert ids[finite].tolist() == expected[finite].tolist()


def test_rows_of_another_layout_or_type_are_compared_as_well():
    values = torch.randn(7, 5).t()
    assert most_likely(values)[0].tolist() == values.argmax(dim=-1).tolist()
    assert most_likely(values.double())[0].tolist() == values.argmax(dim=-1).tolist()
