"""Token ids as they lie in memory: four bytes each, little endian, as the wire carries them and block hashes cover them. Pure."""

import sys
from array import array
from collections.abc import Sequence

BYTES_PER_ID = 4


def as_array(ids: Sequence[int]) -> "array[int]":
    """Number by number, once; what comes after copies it as it lies. Raises OverflowError for what is no u32."""
    return array("I", ids)


def packed(ids: Sequence[int]) -> bytes:
    """Of an array by one copy, of anything else number by number. Raises OverflowError for what is no u32."""
    words = ids if isinstance(ids, array) and ids.typecode == "I" else array("I", ids)
    if sys.byteorder == "big":
        words = array("I", words)
        words.byteswap()
    return words.tobytes()
