"""Long texts in chunks that are tokenized one by one and remembered, so that the next turn of a conversation costs only what is new in it.

Exact or not at all. A text is cut between an ASCII letter or digit and a space. That changes no token where

    the normalizer looks at no neighbour across an ASCII space       none, NFC, or NFKC
    every piece that the pre-tokenizer makes ends at such a place    GPT-2's rule and the patterns in KNOWN_PATTERNS: no alternative of
                                                                     them matches a letter or digit and a space after it, none looks back
    no added token lies across such a place, or takes spaces after   read from the tokenizer's file

since BPE works on one piece at a time. Other tokenizers (sentencepiece: spaces are letters to it) encode every text whole. Where the cuts
lie hangs on what is before them alone, so texts that begin alike have the same first chunks.

Owned by a TokenText, on the event loop; knows no tokenizer but its file.
"""

import re
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from sys import getsizeof
from typing import Any, NamedTuple

from pagoda_router.beginnings import LEAD, Beginning, KnownBeginnings

CHUNK_CHARS = 1024
"""At least; a chunk ends at the first place after so many where a text may be cut."""
MOST_BYTES = 48 * 2**20
"""Of chunks remembered per tokenizer: a hundred conversations of 100 000 tokens. Those used least recently go first."""
MOST_TEXT_BYTES = 32 * 2**20
"""Of whole texts remembered per tokenizer, with their ids: some 45 of 220 000 characters."""
ENTRY_BYTES = 200
"""Of each beside its text and ids: the key, the dictionary's share, an array's head."""

_SPACE_AFTER_WORD = re.compile(r"[A-Za-z0-9] ")
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN_PATTERNS = frozenset(
    {
        # cl100k and Llama 3; Qwen 2 and 2.5
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS,
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS,
        # Qwen 3.5 and later: marks are part of words
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _BLANKS,
        # o200k: gpt-oss, Llama 4
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _BLANKS,
        # our tiny model: a word that begins with an upper-case letter leaves the space to what is before it
        r" ?[^\s\p{L}\p{N}]+ (?=[\p{N}\p{Lu}])|\p{Lu}[\p{L}\p{M}]*| ?(?!\p{Lu})[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    }
)
"""Of a Split, as they stand in tokenizer.json."""


def can_be_cut(document: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is one of those whose texts may be cut."""
    normalizer, model = document.get("normalizer"), document.get("model") or {}
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer.get("type") in ("NFC", "NFKC"))
        and _ends_pieces(document.get("pre_tokenizer") or {})
        and all(_keeps_apart(token) for token in document.get("added_tokens") or [])
    )


def _ends_pieces(pre_tokenizer: dict[str, Any]) -> bool:
    """At least one of its steps cuts where we do; none has another view of it."""
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    ends = False
    for step in steps or []:
        if step.get("type") == "ByteLevel":
            ends = ends or step.get("use_regex") is True
        elif step.get("type") == "Split":
            if step.get("behavior") != "Isolated" or step.get("invert") or (step.get("pattern") or {}).get("Regex") not in KNOWN_PATTERNS:
                return False
            ends = True
        elif step.get("type") != "Digits":
            return False
    return ends


def _keeps_apart(token: dict[str, Any]) -> bool:
    content = str(token.get("content"))
    return not (_SPACE_AFTER_WORD.search(content) or (token.get("single_word") and content.startswith(" ")) or token.get("rstrip"))


def chunks_of(text: str, start: int = 0) -> Iterator[str]:
    """All of the text from where a chunk begins, in order; only the last is shorter than CHUNK_CHARS."""
    while (found := _SPACE_AFTER_WORD.search(text, start + CHUNK_CHARS - 1)) is not None:
        yield text[start : (end := found.start() + 1)]
        start = end
    yield text[start:]


class KnownChunks:
    """Ids of chunks seen lately. `scope` keeps senders apart: how long an answer takes must not tell one what another sent."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._ids: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, scope: str, chunk: str) -> "array[int] | None":
        found = self._ids.get(key := (scope, chunk))
        if found is not None:
            self._ids.move_to_end(key)
        return found

    def add(self, scope: str, chunk: str, ids: Sequence[int]) -> "array[int]":
        packed = array("I", ids)
        if (key := (scope, chunk)) not in self._ids:
            self._ids[key] = packed
            self.held_bytes += held_bytes(chunk, packed)
            while self.held_bytes > self._most_bytes:
                (_, oldest), forgotten = self._ids.popitem(last=False)
                self.held_bytes -= held_bytes(oldest, forgotten)
        return packed


def held_bytes(chunk: str, ids: "array[int]") -> int:
    return getsizeof(chunk) + ids.itemsize * len(ids) + ENTRY_BYTES


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

    def continued(self, chunks: Sequence[str], parts: "Sequence[array[int]]") -> "CutText":
        ids = self.id_ends[-1] if self.id_ends else 0
        ends = array("I", accumulate(map(len, chunks), initial=self.chars))[1:]
        id_ends = array("I", accumulate(map(len, parts), initial=ids))[1:]
        return CutText(self.ends + ends, self.id_ends + id_ends, b"".join([self.packed, *[part.tobytes() for part in parts]]))


NOTHING_CUT = CutText(array("I"), array("I"), b"")


class KnownTexts:
    """Of whole texts seen lately where they were cut, and their ids: for the next turn of a conversation no chunk need be looked up."""

    def __init__(self, most_bytes: int = MOST_TEXT_BYTES) -> None:
        self._texts: KnownBeginnings[str, CutText] = KnownBeginnings(most_bytes)

    def longest(self, scope: str, text: str) -> "tuple[Beginning[str, CutText] | None, CutText]":
        """What was found, for `remember`, and of it the chunks that are this text's too."""
        near = self._texts.longest(scope, text)
        return near, NOTHING_CUT if near is None else near.known.worked.first(near.length)

    def remember(self, scope: str, text: str, cut: CutText, near: "Beginning[str, CutText] | None") -> None:
        size_bytes = getsizeof(text) + getsizeof(text[:LEAD]) + len(cut.packed) + ENTRY_BYTES
        self._texts.remember(scope, text, cut, size_bytes, near)
