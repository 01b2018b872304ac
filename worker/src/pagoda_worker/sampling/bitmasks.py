"""Sets of token ids as bits, for constraints that narrow them. Pure numpy; row_masks.py turns them into tensors."""

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.int32]


def no_bits(vocab_size: int) -> Bits:
    return np.zeros(-(-vocab_size // 32), np.int32)


def set_bits(bits: Bits, ids: npt.NDArray[np.int64]) -> None:
    words = bits.view(np.uint32)
    np.bitwise_or.at(words, ids // 32, np.left_shift(np.uint32(1), (ids % 32).astype(np.uint32)))


def clear_bits(bits: Bits, ids: npt.NDArray[np.int64]) -> None:
    words = bits.view(np.uint32)
    np.bitwise_and.at(words, ids // 32, ~np.left_shift(np.uint32(1), (ids % 32).astype(np.uint32)))
