"""Text to token ids and back: one loaded tokenizer per file, encoding off the event loop, incremental detokenizers.

Knows nothing of requests or models beyond the tokenizer file. openai/ encodes prompts and streams text with it.
"""

import asyncio
import codecs
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tokenizers import Tokenizer

from pagoda_router.beginnings import LEAD
from pagoda_router.errors import UpstreamFailed
from pagoda_router.text.chunks import KnownTexts, chunks_of
from pagoda_router.text.encoders import EncodedTexts, Encoder, LibraryEncoder, encoder_for
from pagoda_router.text.forms import can_be_cut

LEAST_CUT_CHARS = 2 * LEAD
"""Of shorter texts too little would be remembered to be worth cutting them."""
WINDOW_SEED_IDS = 6
"""Prompt tokens a window detokenizer starts from, so that the first word keeps the space before it."""
LONGEST_CHARACTER_TOKENS = 4
"""A UTF-8 character is at most four byte tokens: what is unreadable after more is not unfinished but invalid."""
NORMALIZER_SHRINK = 4
"""At most so much shorter do normalizers make a text in bytes (composed Hangul is a third; the rest is margin)."""


class Detokenizer(Protocol):
    """Ids in any partition → text in pieces that join to what the whole sequence decodes to. A piece never ends inside a character."""

    def feed(self, token_ids: Sequence[int]) -> str: ...

    def end(self, *, truncated: bool) -> str:
        """What is still held. truncated: the limit cut an unfinished character, which is dropped; else its bytes show as U+FFFD."""
        ...


class TokenText:
    """One tokenizer and what is derived from it once."""

    def __init__(self, tokenizer: Tokenizer, *, byte_level: bool, can_be_cut: bool = False, encoder: Encoder | None = None) -> None:
        """`can_be_cut`: as forms.can_be_cut said of its file. `encoder`: one proven to give this tokenizer's ids."""
        self._tokenizer = tokenizer
        self._encoder: Encoder = encoder or LibraryEncoder(tokenizer)
        self._known_texts = KnownTexts()
        self._can_be_cut = can_be_cut
        self._around = _specials_around(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._special_ids = frozenset(self._special)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._bytes: list[bytes] = [b""] * (max(vocabulary.values(), default=-1) + 1)
        to_bytes = _byte_level_bytes if byte_level else _fallback_bytes
        for token, token_id in vocabulary.items():
            self._bytes[token_id] = to_bytes(token)
        self._byte_level = byte_level
        self._longest_token_bytes = max(map(len, self._bytes), default=1) or 1

    async def encode(self, text: str, *, add_special_tokens: bool, scope: str = "") -> "array[int]":
        """`scope`: whose text it is. What others sent is not remembered for them."""
        around = self._around if add_special_tokens else NOTHING_AROUND
        if around is None:
            long = len(text) > LibraryEncoder.chars_at_once
            return await asyncio.to_thread(self._encode_with_specials, text) if long else self._encode_with_specials(text)
        if len(text) >= LEAST_CUT_CHARS and self._can_be_cut:
            known, packed = await self._encode_cut(text, scope)
        else:
            known, packed = b"", (await self._encode([text])).packed
        before, after = around
        return array("I", b"".join([before, known, packed, after]))

    def _encode_with_specials(self, text: str) -> "array[int]":
        return array("I", self._tokenizer.encode_batch_fast([text], add_special_tokens=True)[0].ids)

    async def _encode_cut(self, text: str, scope: str) -> tuple[bytes, bytes]:
        """What was known of it, and the rest."""
        near, begun = self._known_texts.longest(scope, text)
        chunks = list(chunks_of(text, begun.chars))
        encoded = await self._encode(chunks)
        if len(chunks) > 1:
            self._known_texts.remember(scope, text, begun.continued(chunks, encoded), near)
        return begun.packed, encoded.packed

    async def _encode(self, texts: list[str]) -> EncodedTexts:
        """Much of it in a thread, which leaves the interpreter's lock while it computes."""
        if sum(map(len, texts)) <= self._encoder.chars_at_once:
            return self._encoder.encode(texts)
        return await asyncio.to_thread(self._encoder.encode, texts)

    def least_tokens(self, text: str) -> int:
        """A lower bound of the text's length in tokens that costs nothing: a hopeless prompt need not be encoded."""
        return len(text) // (self._longest_token_bytes * NORMALIZER_SHRINK)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """Of one token alone; for byte tokens possibly a part of a character."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def detokenizer(self, prompt_ids: Sequence[int], *, skip_special_tokens: bool, markers: Sequence[str] = ()) -> Detokenizer:
        """`markers`: special tokens that are never skipped."""
        skipped = self._special_ids if skip_special_tokens else frozenset[int]()
        shown = frozenset(i for i in skipped if self._special[i] in markers) if markers else frozenset[int]()
        if self._byte_level:
            return ByteLevelDetokenizer(self._bytes, skipped - shown if shown else skipped)
        seed_ids = list(prompt_ids[-WINDOW_SEED_IDS:])
        if shown:
            # The library skips all special tokens or none.
            return WindowDetokenizer(self._tokenizer, seed_ids, skip_special_tokens=False, skipped_ids=skipped - shown)
        return WindowDetokenizer(self._tokenizer, seed_ids, skip_special_tokens=skip_special_tokens)


NOTHING_AROUND = b"", b""


def _specials_around(tokenizer: Tokenizer) -> tuple[bytes, bytes] | None:
    """What a text gets before and after it when special tokens are asked for, packed. None: it cannot be told from the text's own."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    places = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    if len(places) != 1 or not bare:
        return None
    (at,) = places
    return array("I", whole[:at]).tobytes(), array("I", whole[at + len(bare) :]).tobytes()


class ByteLevelDetokenizer:
    """For byte-level BPE (GPT-2, Llama 3, Qwen, ours): every token is bytes, so Python's incremental UTF-8 decoder is exact."""

    def __init__(self, token_bytes: Sequence[bytes], skipped_ids: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped_ids = skipped_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._holds = False
        """The beginning of a character, whose end has not come."""

    def feed(self, token_ids: Sequence[int]) -> str:
        table, skipped = self._token_bytes, self._skipped_ids
        known = len(table)
        raw = b"".join([table[i] for i in token_ids if i not in skipped and i < known])
        if raw.isascii() and not self._holds:
            return raw.decode()  # most text: the incremental decoder is Python
        text = self._utf8.decode(raw)
        self._holds = bool(self._utf8.getstate()[0])
        return text

    def end(self, *, truncated: bool) -> str:
        return "" if truncated else self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For every other tokenizer (sentencepiece, byte fallback, word pieces): decode a small window twice and take the difference.

    # ids in the window      [ prefix: emitted, kept for context | pending: not emitted yet ]
    A token's text may depend on its neighbour (the space before a word), so the prefix is decoded along; both move on with each emission.
    """

    def __init__(
        self, tokenizer: Tokenizer, seed_ids: list[int], *, skip_special_tokens: bool, skipped_ids: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._skip_special_tokens = skip_special_tokens
        self._window = seed_ids
        self._emitted = len(seed_ids)
        self._unreadable = 0
        """Tokens in a row after which the text ended unreadably."""

    def feed(self, token_ids: Sequence[int]) -> str:
        # One id at a time: only then is an unreadable tail known to be this character's.
        return "".join([self._feed_one(i) for i in token_ids if i not in self._skipped_ids])

    def _feed_one(self, token_id: int) -> str:
        self._window.append(token_id)
        prefix, whole = self._texts()
        self._unreadable = self._unreadable + 1 if whole.endswith("\ufffd") else 0
        if len(whole) <= len(prefix) or 0 < self._unreadable < LONGEST_CHARACTER_TOKENS:
            return ""
        del self._window[: self._emitted]
        self._emitted = len(self._window)
        return whole[len(prefix) :]

    def end(self, *, truncated: bool) -> str:
        prefix, whole = self._texts()
        rest = whole[len(prefix) :]
        return rest.rstrip("\ufffd") if truncated else rest

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        skip = self._skip_special_tokens
        return decode(self._window[: self._emitted], skip_special_tokens=skip), decode(self._window, skip_special_tokens=skip)


class TokenizerCache:
    """Each tokenizer file is read once; the least recently used leave beyond the bound."""

    def __init__(self, *, max_tokenizers: int = 16) -> None:
        self._max_tokenizers = max_tokenizers
        self._loads: OrderedDict[str, asyncio.Future[TokenText]] = OrderedDict()

    async def get(self, file: str) -> TokenText:
        load = self._loads.get(file)
        if load is None:
            load = self._loads[file] = asyncio.ensure_future(asyncio.to_thread(load_tokenizer, file))
            while len(self._loads) > self._max_tokenizers:
                self._loads.popitem(last=False)
        else:
            self._loads.move_to_end(file)
        if load.done() and load.exception() is None:  # nearly always
            return load.result()
        try:
            # Shielded: the request that came first may be cancelled, those that wait with it must not be.
            return await asyncio.shield(load)
        except UpstreamFailed:
            self._loads.pop(file, None)
            raise


class _Model(msgspec.Struct):
    """Without its vocabulary, which is most of the file."""

    type: str = ""
    dropout: float | None = None
    byte_fallback: bool | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _TokenizerFile(msgspec.Struct):
    decoder: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[dict[str, Any]] | None = None
    model: _Model | None = None


def load_tokenizer(file: str) -> TokenText:
    try:
        raw = Path(file).read_bytes()
        tokenizer = Tokenizer.from_buffer(raw)
        document = msgspec.to_builtins(msgspec.json.decode(raw, type=_TokenizerFile))
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        raise UpstreamFailed(f"the model's tokenizer cannot be read: {error}") from error
    # A file may carry the truncation and padding of its training.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    decoder = document["decoder"] or {}
    kinds = [part.get("type") for part in decoder.get("decoders") or [decoder]]
    encoder = encoder_for(raw, document, tokenizer)
    return TokenText(tokenizer, byte_level=kinds == ["ByteLevel"], can_be_cut=can_be_cut(document), encoder=encoder)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's map from the printable characters that stand for bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others: Iterable[int] = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    # As the tokenizers library decodes: a token with any character outside the alphabet (an added one) is its own text.
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def _fallback_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()
