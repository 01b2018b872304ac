"""Ranks that meet in shared memory: sums in the order of ranks, the same bits on each, whatever the size; and nobody waits for ever."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pagoda_worker.errors import RanksOutOfStep
from pagoda_worker.layers.collectives import GroupCollectives
from pagoda_worker.layers.meeting_ground import GroundCollectives
from pagoda_worker.native.library import load_library

RANKS = 3
PIECE = 256 << 10
"""Bytes that are laid down at once."""
LIBRARY = load_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no kernels are compiled here")


def at_once(work: Callable[[int], None]) -> None:
    """`work` of every rank, each in a thread."""
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if errors:
        raise errors[0]


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[GroundCollectives]]:
    made: dict[int, GroundCollectives] = {}

    def join(rank: int) -> None:
        group = GroupCollectives(rank, RANKS, tmp_path / "meeting", torch.device("cpu"))
        assert LIBRARY is not None
        made[rank] = GroundCollectives(LIBRARY, group, tmp_path / "ground", patience_s=60.0)

    at_once(join)
    return [made[rank] for rank in range(RANKS)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 17, 4096, PIECE // 2, PIECE // 2 + 5, 3 * PIECE // 4 + 33])
def test_a_sum_is_added_in_the_order_of_ranks_and_rounded_once(ranks: list[GroundCollectives], dtype: torch.dtype, count: int):
    torch.manual_seed(count)
    for _ in range(3):  # both places of a piece, and the first again
        parts = [torch.randn(count).to(dtype) for _ in range(RANKS)]
        sums: dict[int, Tensor] = {}
        at_once(lambda rank, parts=parts, sums=sums: sums.update({rank: ranks[rank].all_reduce(parts[rank].clone())}))
        expected = ((parts[0].float() + parts[1].float()) + parts[2].float()).to(dtype)
        assert all(torch.equal(each, expected) for each in sums.values())


def test_of_a_gather_rank_0_has_everybodys_in_their_order(ranks: list[GroundCollectives]):
    parts = [torch.full((40, 7001), float(rank)) for rank in range(RANKS)]
    gathered: dict[int, list[Tensor]] = {}
    at_once(lambda rank: gathered.update({rank: list(ranks[rank].gather(parts[rank]))}))
    assert [len(gathered[rank]) for rank in range(RANKS)] == [RANKS, 0, 0]
    assert all(torch.equal(each, part) for each, part in zip(gathered[0], parts, strict=True))


def test_other_types_take_the_way_of_the_group(ranks: list[GroundCollectives]):
    sums: dict[int, Tensor] = {}
    at_once(lambda rank: sums.update({rank: ranks[rank].all_reduce(torch.tensor([1 << 40, rank]))}))
    assert all(each.tolist() == [3 << 40, 3] for each in sums.values())


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(ranks: list[GroundCollectives]):
    ranks[0].patience_s = 0.0
    with pytest.raises(RanksOutOfStep, match="has not come to where they meet"):
        ranks[0].all_reduce(torch.ones(3))
