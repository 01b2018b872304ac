"""Every type of ggml that is read, beside the package `gguf` (llama.cpp's own)."""

import gguf
import numpy as np
import pytest
import torch

from pagoda_worker.models.formats.gguf_blocks import dequantized, q4_0
from pagoda_worker.models.formats.gguf_file import TYPES


@pytest.mark.parametrize(("number", "name"), [(number, each.name) for number, each in TYPES.items()])
def test_blocks_are_the_numbers_that_llama_cpp_makes_of_them(number: int, name: str):
    """Any bytes are a block of some numbers; scales are halves and must be finite."""
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == name
    assert gguf.GGML_QUANT_SIZES[kind] == (TYPES[number].values, TYPES[number].nbytes)
    blocks = random_blocks(name, 64)
    expected = torch.from_numpy(gguf.dequantize(blocks, kind).astype(np.float32))
    torch.testing.assert_close(dequantized(name, torch.from_numpy(blocks.copy())), expected, rtol=1e-6, atol=1e-6)


def test_q4_0_is_held_exactly():
    blocks = torch.from_numpy(random_blocks("Q4_0", 12).reshape(3, 4, 18).copy())
    expected = dequantized("Q4_0", blocks.flatten(0, 1)).view(3, 128)
    assert torch.equal(q4_0(blocks).dequantized(torch.float32), expected)


def random_blocks(name: str, count: int) -> np.ndarray:
    (kind,) = (each for each in TYPES.values() if each.name == name)
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, (count, kind.nbytes), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2)}
    floats = generator.uniform(-2, 2, (count, 1))
    if name in ("F32", "F16", "BF16"):
        kinds = {"F32": np.float32, "F16": np.float16}
        return floats.astype(kinds[name]).view(np.uint8) if name in kinds else torch.from_numpy(floats).bfloat16().view(torch.uint8).numpy()
    for at in halves.get(name, (0,)):
        blocks[:, at : at + 2] = generator.uniform(-2, 2, (count, 1)).astype(np.float16).view(np.uint8)
    return blocks
