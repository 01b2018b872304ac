"""Memory for what is large: weights that are read at every token lie on pages that the kernel was asked to make huge."""

import re
from pathlib import Path

import pytest
import torch

from pagoda_worker.layers.allocation import HugePages


def flags_of(address: int) -> list[str]:
    """Those of the mapping that an address of this process lies in, as /proc names them; none where nothing is mapped."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no transparent huge pages"
)


@needs_huge_pages
def test_copies_ask_for_huge_pages():
    assert "hg" in flags_of(HugePages().copy(torch.zeros(3, 5)).data_ptr())


def test_copies_are_contiguous_and_stay_what_they_were():
    pages = HugePages()
    tensors = [torch.randn(33, 7).T, torch.arange(9, dtype=torch.int8), torch.randn(4, 5).bfloat16()]
    copies = [pages.copy(tensor) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        assert copy.is_contiguous() and copy.dtype == tensor.dtype and torch.equal(copy, tensor)
        assert copy.data_ptr() % HugePages.LINE_BYTES == 0


def test_what_is_larger_than_a_piece_has_one_to_itself():
    pages = HugePages()
    large = pages.copy(torch.ones(HugePages.PIECE_BYTES + 1, dtype=torch.int8))
    small = pages.copy(torch.ones(3))
    assert large.data_ptr() % HugePages.PAGE_BYTES == 0
    assert large.sum(dtype=torch.int64) == len(large) and small.tolist() == [1, 1, 1]


@needs_huge_pages
def test_memory_goes_back_with_the_last_tensor_in_it():
    pages = HugePages()
    first, second = pages.copy(torch.ones(3)), pages.copy(torch.ones(3))
    address = first.data_ptr()
    del first
    assert "hg" in flags_of(address)
    del second
    assert "hg" not in flags_of(address)
    assert pages.copy(torch.ones(3)).tolist() == [1, 1, 1]
