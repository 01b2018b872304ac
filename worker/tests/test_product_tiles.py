"""How products are cut for a GPU of 132 processors: small tiles and splits for few rows, large tiles for many."""

import pytest

pytest.importorskip("triton")

from hypothesis import given
from hypothesis import strategies as st

from pagoda_worker.kernels.int8_product import int8_tile
from pagoda_worker.kernels.product_tiles import ProductTile
from pagoda_worker.kernels.weight_only import weight_only_tile

H200 = 132


def cut(tile: ProductTile) -> tuple[int, int, int]:
    return tile.outputs, tile.rows, tile.splits


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "expected"),
    [
        (1, 4096, 4096, (64, 8, 1)),
        (1, 4096, 14_336, (64, 8, 2)),
        (1, 4096, 1024, (32, 8, 1)),
        (16, 1024, 3072, (16, 16, 1)),
        (64, 4096, 14_336, (32, 64, 2)),
        (256, 4096, 4096, (64, 128, 1)),
        (8192, 28_672, 4096, (128, 128, 1)),
    ],
)
def test_tiles_of_int8(rows: int, outputs: int, inputs: int, expected: tuple[int, int, int]):
    assert cut(int8_tile(rows, outputs, inputs, H200)) == expected


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "expected"),
    [
        (1, 4096, 4096, (64, 8, 8)),
        (1, 4096, 14_336, (64, 8, 8)),
        (1, 28_672, 4096, (64, 8, 2)),
        (1, 1024, 2048, (64, 8, 8)),
        (64, 4096, 4096, (64, 64, 4)),
        (256, 28_672, 4096, (128, 128, 1)),
    ],
)
def test_tiles_of_weights_alone(rows: int, outputs: int, inputs: int, expected: tuple[int, int, int]):
    assert cut(weight_only_tile(rows, outputs, inputs, H200)) == expected


@given(st.integers(1, 9000), st.integers(1, 200_000), st.integers(1, 60_000), st.integers(1, 200))
def test_every_tile_is_one_that_matrix_instructions_take_and_every_split_has_inputs(rows: int, outputs: int, inputs: int, processors: int):
    for tile in (int8_tile(rows, outputs, inputs, processors), weight_only_tile(rows, outputs, inputs, processors)):
        assert tile.outputs in (16, 32, 64, 128)
        assert tile.rows in (8, 16, 32, 64, 128)
        assert tile.splits in (1, 2, 4, 8)
        assert tile.splits == 1 or inputs >= 128 * tile.splits
        assert tile.splits == 1 or rows <= 64, "sums of many rows cost more than they save"


@given(st.integers(1, 9000), st.integers(1, 200_000), st.integers(1, 60_000), st.sampled_from([4, 8]))
def test_no_two_warps_make_the_same_factors(rows: int, outputs: int, inputs: int, bits: int):
    tile = weight_only_tile(rows, outputs, inputs, H200, bits=bits)
    assert 16 * tile.warps <= tile.outputs
