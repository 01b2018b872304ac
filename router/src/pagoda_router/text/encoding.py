"""Texts to token ids with one tokenizer: by what is remembered where that is exact, the rest in threads where it is much.

    short text   head + words                    words.py: each looked up, the unknown ones tokenized together
    long text    chunks, remembered as a whole   chunks.py; an unknown chunk is looked up word by word

Tokenizers whose texts may not be cut (chunks.can_be_cut) tokenize them whole. Owned by a TokenText, on the event loop.
"""

import asyncio
import os
from array import array
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from pagoda_router.text.chunks import CHUNK_CHARS, KnownChunks, chunks_of
from pagoda_router.text.words import KnownWords, Vocabularies, are_worth_it, head_and_words, words_of

LEAST_CUT_CHARS = 2 * CHUNK_CHARS
LONG_TEXT_CHARS = 8192
"""Longer texts are tokenized in a thread: about 5 ms of work that neighbours' streams would wait for."""
MOST_THREADS = 4
"""For one text; cores permitting."""
CHUNKS_AT_ONCE = 32
"""Looked up word by word before the event loop may go on: about a millisecond."""


class Encoding:
    def __init__(self, tokenizer: Tokenizer, *, can_be_cut: bool) -> None:
        """`can_be_cut`: as chunks.can_be_cut said of its file."""
        self.known_chunks = KnownChunks()
        self.vocabularies = Vocabularies()
        self._tokenizer = tokenizer
        self._can_be_cut = can_be_cut
        self._around = _specials_around(tokenizer)

    async def encode(self, text: str, *, add_special_tokens: bool, scope: str) -> Sequence[int]:
        """`scope`: whose text it is."""
        if self._can_be_cut and (self._around is not None or not add_special_tokens):
            around = self._around if self._around is not None and add_special_tokens else _NOTHING_AROUND
            if len(text) >= LEAST_CUT_CHARS:
                return await self._encode_cut(text, scope, around)
            return self._encode_short(text, self.vocabularies.of(scope), around)
        if len(text) > LONG_TEXT_CHARS:
            return (await asyncio.to_thread(self._tokenize, [text], add_special_tokens))[0]
        return self._tokenize([text], add_special_tokens)[0]

    def _tokenize(self, texts: list[str], add_special_tokens: bool = False) -> list[list[int]]:
        # The fast form leaves out where in the text each token lies, which nobody asks; it is only there for batches.
        return [encoded.ids for encoded in self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]

    def _encode_short(self, text: str, known: KnownWords, around: "Around") -> list[int]:
        head, words = head_and_words(text)
        if not are_worth_it(words, text):
            return [*around[0], *self._tokenize([text])[0], *around[1]]
        found = known.find(words)
        missing = _unknown(words, found)
        first, *encoded = self._tokenize([head, *[f" {word}" for word in missing]])
        learned = known.learn(missing, encoded)
        ids = array("I", [*around[0], *first])
        ids.frombytes(b"".join([learned[word] if its is None else its for word, its in zip(words, found, strict=True)]))
        return [*ids, *around[1]]

    async def _encode_cut(self, text: str, scope: str, around: "Around") -> Sequence[int]:
        chunks, known = list(chunks_of(text)), self.known_chunks
        parts: list[array[int] | None] = [known.get(scope, chunk) for chunk in chunks[:-1]]
        parts.append(None)  # the last one is as long as the text happens to be, and would seldom be met again
        missing = [at for at, part in enumerate(parts) if part is None]
        found = await self._encode_chunks([chunks[at] for at in missing], self.vocabularies.of(scope))
        for at, ids in zip(missing, found, strict=True):
            parts[at] = ids
            if at < len(chunks) - 1:
                known.add(scope, chunks[at], ids)
        whole = array("I", around[0])
        whole.frombytes(b"".join([part.tobytes() for part in parts if part is not None]))
        whole.extend(around[1])
        return whole

    async def _encode_chunks(self, chunks: Sequence[str], known: KnownWords) -> "list[array[int]]":
        """All but the text's first begin with a word; that one, and those whose words are not worth it, are tokenized whole."""
        words: list[list[str]] = []
        found: list[list[bytes | None]] = []
        for at, chunk in enumerate(chunks):
            if at and at % CHUNKS_AT_ONCE == 0:
                await asyncio.sleep(0)
            some = words_of(chunk) if chunk.startswith(" ") else []
            words.append(some if are_worth_it(some, chunk) else [])
            found.append(known.find(words[-1]))
        wholes = [chunk for chunk, some in zip(chunks, words, strict=True) if not some]
        missing = list(dict.fromkeys([word for some, ids in zip(words, found, strict=True) for word in _unknown(some, ids)]))
        encoded = await self._tokenize_many([*wholes, *[f" {word}" for word in missing]])
        learned = known.learn(missing, encoded[len(wholes) :])
        whole_ids = iter(encoded)
        parts: list[array[int]] = []
        for some, ids in zip(words, found, strict=True):
            parts.append(array("I", [] if some else next(whole_ids)))
            parts[-1].frombytes(b"".join([learned[word] if its is None else its for word, its in zip(some, ids, strict=True)]))
        return parts

    async def _tokenize_many(self, texts: list[str]) -> list[list[int]]:
        """Without special tokens. Much of it in threads, which leave the interpreter's lock while they compute."""
        chars = sum(map(len, texts))
        if chars <= LONG_TEXT_CHARS:
            return self._tokenize(texts)
        threads = min(MOST_THREADS, len(os.sched_getaffinity(0)), chars // LONG_TEXT_CHARS, len(texts))
        shares = [texts[at::threads] for at in range(threads)]
        found: list[list[int]] = [[]] * len(texts)
        for at, share in enumerate(await asyncio.gather(*[asyncio.to_thread(self._tokenize, share) for share in shares])):
            found[at::threads] = share
        return found


Around = tuple[Sequence[int], Sequence[int]]
"""What a text gets before and after it."""
_NOTHING_AROUND: Around = ((), ())


def _unknown(words: Iterable[str], found: Sequence[bytes | None]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys([word for word, ids in zip(words, found, strict=True) if ids is None])) if None in found else []


def _specials_around(tokenizer: Tokenizer) -> Around | None:
    """When special tokens are asked for. None: they cannot be told from the text's own."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    places = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    if len(places) != 1 or not bare:
        return None
    (at,) = places
    return whole[:at], whole[at + len(bare) :]
