"""Texts to token ids, without special tokens: by fastokens where it is known to give the same ids, else by the tokenizers library.

Neither needs the event loop; both leave the interpreter's lock while they compute. text/tokens.py owns one per tokenizer and says in which
thread it works.
"""

import logging
import sys
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from fastokens import Tokenizer as FastTokenizer
from tokenizers import Tokenizer

from pagoda_router.text.forms import is_proven

TEXTS_AT_ONCE = 16
PROBE = (
    "The 1st of 12345 don'ts:\tI'LL say “naïve” Ünïcode, 3.14159e-10!\r\n\r\n   def f(x):\n        return {'a': [x ** 2, -1]}  \n\n"
    "日本語とひらがなカタカナ 中文，한국어 각 العربية ١٢٣ עברית हिन्दी ไทย Ελλάδα Россия e\u0301 a\u0308\u0323 \u212b \ufb01 ½ Ⅷ ǅ ʰ İ ß"
    "🙂🙂👨\u200d👩\u200d👧 🇪🇺 ✈\ufe0f \u00a0\u2003\u3000\x85\u2028\x0b\x00\x1f https://example.com/a/b?c=d#e CamelCaseXYZ snake_case </p>"
    " <p>// /// ===== ----- 0x7FFF ''' 'S 'll \"quoted\" \\n {{}} []() $5 €6 £7 ×÷≠∑ 가가 \u0345\u0f73 \ud7a3\uffff\U0010ffff  end "
)
"""What a tokenizer is checked with when it is loaded: every kind of character, blank and border that its pattern tells apart."""

log = logging.getLogger(__name__)


class EncodedTexts(NamedTuple):
    packed: bytes
    """The ids of all the texts in order, as in an array."""
    ends: "array[int]"
    """How many ids there are up to the end of each."""


class Encoder(Protocol):
    chars_at_once: int
    """More are for a thread: neighbours' streams would wait for them, half a millisecond with fastokens, and up to 5 ms without."""

    def encode(self, texts: list[str]) -> EncodedTexts: ...


class LibraryEncoder:
    """For every tokenizer."""

    chars_at_once = 8192

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> EncodedTexts:
        parts = list(self._parts(texts))
        return EncodedTexts(b"".join([part.tobytes() for part in parts]), array("I", accumulate(map(len, parts))))

    def _parts(self, texts: list[str]) -> "Iterator[array[int]]":
        """A few at a time: their ids become objects of the interpreter all at once, and the event loop waits for its lock meanwhile."""
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            # The fast form leaves out where in the text each token lies, which nobody asks; it is only there for batches.
            for encoded in self._tokenizer.encode_batch_fast(texts[start : start + TEXTS_AT_ONCE], add_special_tokens=False):
                yield array("I", encoded.ids)


class _FastTokenizer(Protocol):
    """What is used of fastokens, which carries no types."""

    def no_truncation(self) -> None: ...

    def no_padding(self) -> None: ...

    def encode_batch_flat(self, inputs: list[str]) -> tuple[bytes, bytes]:
        """All ids as u32, and where each text's begin as u64, with the end; little endian."""
        ...


class FastEncoder:
    """For those of text/forms.py is_proven. No id becomes an object of the interpreter."""

    chars_at_once = 16384

    def __init__(self, tokenizer: _FastTokenizer) -> None:
        tokenizer.no_truncation()  # a file may carry those of its training
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> EncodedTexts:
        packed, starts = self._tokenizer.encode_batch_flat(texts)
        return EncodedTexts(packed, array("I", array("Q", starts)[1:]))


def encoder_for(raw: bytes, document: dict[str, Any], tokenizer: Tokenizer) -> Encoder:
    """`raw`: the tokenizer's file; `document`: the same, without its vocabulary; `tokenizer`: read from it."""
    by_library = LibraryEncoder(tokenizer)
    if not is_proven(document) or sys.byteorder == "big":  # fastokens writes little endian
        return by_library
    try:
        fast = FastEncoder(FastTokenizer.from_json_str(raw.decode()))
        reason = difference(fast, by_library, [str(token.get("content")) for token in document.get("added_tokens") or []])
    except ValueError as error:
        reason = str(error)
    if reason is None:
        return fast
    log.warning("the tokenizers library encodes this model's prompts, ten times slower: fastokens cannot be used (%s)", reason)
    return by_library


def difference(fast: Encoder, by_library: Encoder, added: list[str]) -> str | None:
    """Where the two disagree over the probe, with some of the tokenizer's own added tokens in it and without."""
    texts = [PROBE, PROBE.swapcase(), PROBE[::-1], *[f"a {token} {token}{token}b{PROBE[:40]}" for token in added[:32] + added[-32:]]]
    ours, theirs = fast.encode(texts), by_library.encode(texts)
    return None if ours == theirs else f"it gives other ids for a probe text, {ours.ends[-1]} in place of {theirs.ends[-1]}"
