"""Long texts in chunks, so that the next turn of a conversation costs only what is new in it.

A text is cut between an ASCII letter or digit and a space, where its tokenizer allows it (text/forms.py can_be_cut). Where the cuts lie
hangs on what is before them alone, so texts that begin alike have the same first chunks.

Owned by a TokenText, on the event loop; knows no tokenizer.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from sys import getsizeof
from typing import NamedTuple

from pagoda_router.beginnings import LEAD, Beginning, KnownBeginnings
from pagoda_router.text.encoders import EncodedTexts

CHUNK_CHARS = 1024
"""At least; a chunk ends at the first place after so many where a text may be cut."""
MOST_TEXT_BYTES = 32 * 2**20
"""Of whole texts remembered per tokenizer, with their ids: some 45 of 220 000 characters."""
ENTRY_BYTES = 200
"""Of each beside its text and ids: the key, the dictionary's share, an array's head."""

_SPACE_AFTER_WORD = re.compile(r"[A-Za-z0-9] ")


def chunks_of(text: str, start: int = 0) -> Iterator[str]:
    """All of the text from where a chunk begins, in order; only the last is shorter than CHUNK_CHARS."""
    while (found := _SPACE_AFTER_WORD.search(text, start + CHUNK_CHARS - 1)) is not None:
        yield text[start : (end := found.start() + 1)]
        start = end
    yield text[start:]


class CutText(NamedTuple):
    """The chunks of a text but for its last one, which are the first of every text that begins so."""

    ends: "array[int]"
    """Where each ends, in characters."""
    id_ends: "array[int]"
    """How many ids it and those before it have."""
    packed: bytes
    """Those ids, as in an array."""

    @property
    def chars(self) -> int:
        return self.ends[-1] if self.ends else 0

    def first(self, chars: int) -> "CutText":
        """The chunks that a text has too whose first `chars` characters are the same. A chunk ends before a space, which is one of them."""
        count = bisect_left(self.ends, chars)
        ids = self.id_ends[count - 1] if count else 0
        return CutText(self.ends[:count], self.id_ends[:count], self.packed[: ids * self.id_ends.itemsize])

    def continued(self, chunks: Sequence[str], encoded: EncodedTexts) -> "CutText":
        """With those that come after, but for the last, which is as long as the text happens to be."""
        ids = self.id_ends[-1] if self.id_ends else 0
        ends = array("I", accumulate(map(len, chunks[:-1]), initial=self.chars))[1:]
        id_ends = array("I", [ids + end for end in encoded.ends[:-1]])
        new_bytes = (encoded.ends[-2] if len(chunks) > 1 else 0) * ends.itemsize
        return CutText(self.ends + ends, self.id_ends + id_ends, self.packed + encoded.packed[:new_bytes])


NOTHING_CUT = CutText(array("I"), array("I"), b"")


class KnownTexts:
    """Of whole texts seen lately where they were cut, and their ids: the next turn of a conversation is encoded from its last cut on."""

    def __init__(self, most_bytes: int = MOST_TEXT_BYTES) -> None:
        self._texts: KnownBeginnings[str, CutText] = KnownBeginnings(most_bytes)

    def longest(self, scope: str, text: str) -> "tuple[Beginning[str, CutText] | None, CutText]":
        """What was found, for `remember`, and of it the chunks that are this text's too."""
        near = self._texts.longest(scope, text)
        return near, NOTHING_CUT if near is None else near.known.worked.first(near.length)

    def remember(self, scope: str, text: str, cut: CutText, near: "Beginning[str, CutText] | None") -> None:
        size_bytes = getsizeof(text) + getsizeof(text[:LEAD]) + len(cut.packed) + ENTRY_BYTES
        self._texts.remember(scope, text, cut, size_bytes, near)
