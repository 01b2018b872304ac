"""Long texts tokenized in chunks, those of a known beginning from memory: exactly the tokens of the whole, or not cut at all."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors
from trained_tokenizers import TRAINED, WORDS, document_of, trained

from pagoda_router.text.chunks import CHUNK_CHARS, chunks_of
from pagoda_router.text.encoders import FastEncoder, encoder_for
from pagoda_router.text.forms import can_be_cut
from pagoda_router.text.tokens import TokenText, load_tokenizer

SHIPPED = Path(__file__).parents[2] / "worker/src/pagoda_worker/builtin/tiny/tokenizer.json"


def cut_text(tokenizer: Tokenizer) -> TokenText:
    document = document_of(tokenizer)
    assert can_be_cut(document)
    encoder = encoder_for(tokenizer.to_str().encode(), document, tokenizer)
    assert isinstance(encoder, FastEncoder)
    return TokenText(tokenizer, byte_level=True, can_be_cut=True, encoder=encoder)


TEXTS = [cut_text(tokenizer) for tokenizer in TRAINED]
BY_LIBRARY = [TokenText(tokenizer, byte_level=True, can_be_cut=True) for tokenizer in TRAINED]
words = st.one_of(st.sampled_from(WORDS), st.text(max_size=5))
long_texts = st.lists(words, min_size=40, max_size=120).map(lambda some: "".join(some) * 60)


@settings(max_examples=25)
@given(text=long_texts, which=st.sampled_from(range(len(TRAINED))), special=st.booleans())
@example(text="a " * 12000, which=0, special=True)
@example(text="." * 3000 + " 5 " + "a b" * 9000, which=1, special=False)
async def test_cut_and_remembered_a_text_has_the_tokens_that_it_has_whole(text: str, which: int, special: bool) -> None:
    text = text.encode(errors="ignore").decode()
    turns = (text[: len(text) // 2], text, text, text[: len(text) * 3 // 4] + " and more")  # anew, longer, from memory, and branched off
    for turn in turns:
        whole = TRAINED[which].encode(turn, add_special_tokens=special).ids
        for encoding in (TEXTS[which], BY_LIBRARY[which]):
            assert list(await encoding.encode(turn, add_special_tokens=special)) == whole


async def test_the_shipped_tokenizers_long_texts_are_cut_and_exact() -> None:
    text, rng = load_tokenizer(str(SHIPPED)), Random(2)
    raw = Tokenizer.from_file(str(SHIPPED))
    for _ in range(20):
        words = "".join(rng.choices([*WORDS, " word", " 7"], k=1500))
        assert list(await text.encode(words, add_special_tokens=False)) == raw.encode(words, add_special_tokens=False).ids


async def test_the_next_turn_of_a_conversation_costs_only_what_is_new_in_it() -> None:
    tokenizer = Counting(TRAINED[1])
    text = TokenText(tokenizer, byte_level=True, can_be_cut=True)  # type: ignore[arg-type]
    turn = "User: how many ships are in the harbour today? Assistant: I count twelve of them and two boats. " * 100
    await text.encode(turn, add_special_tokens=False, scope="a")
    tokenizer.chars = 0
    await text.encode(turn + "User: and now?", add_special_tokens=False, scope="a")
    assert tokenizer.chars < 2 * CHUNK_CHARS
    tokenizer.chars = 0
    await text.encode(turn, add_special_tokens=False, scope="b")
    assert tokenizer.chars == len(turn), "what another sender sent is not remembered for this one"


class Counting:
    """A tokenizer that knows how much it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.chars = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts, **options)


@given(st.text(alphabet=st.sampled_from("ab7 .\n🙂"), max_size=6000))
def test_chunks_are_all_of_the_text_and_no_shorter_than_they_must_be(text: str) -> None:
    chunks = list(chunks_of(text))
    assert "".join(chunks) == text
    assert all(len(chunk) >= CHUNK_CHARS for chunk in chunks[:-1])
    assert all(chunk[0] == " " for chunk in chunks[1:])


@given(st.text(alphabet="ab ", min_size=3000, max_size=6000), st.text(alphabet="ab ", max_size=3000))
def test_texts_that_begin_alike_begin_with_the_same_chunks(beginning: str, rest: str) -> None:
    one, other = list(chunks_of(beginning)), list(chunks_of(beginning + rest))
    assert other[: len(one) - 1] == one[:-1]


def document(**changes: Any) -> dict[str, Any]:
    return {**document_of(TRAINED[1]), **changes}


SENTENCEPIECE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
UNKNOWN = {"type": "Split", "pattern": {"Regex": r"\w+ |\s"}, "behavior": "Isolated", "invert": False}
NOT_CUT = [
    ("words that take the space after them", {"pre_tokenizer": UNKNOWN}),
    ("sentencepiece", {"pre_tokenizer": SENTENCEPIECE}),
    ("no pre-tokenizer", {"pre_tokenizer": None}),
    ("bytes that are not split", {"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}),
    ("a normalizer that looks at words", {"normalizer": {"type": "Prepend", "prepend": "▁"}}),
    ("unigrams", {"model": {"type": "Unigram"}}),
    ("chance", {"model": {"type": "BPE", "dropout": 0.1}}),
    ("an added token of two words", {"added_tokens": [{"content": "two words"}]}),
    ("an added token that takes the spaces after it", {"added_tokens": [{"content": "<x>", "rstrip": True}]}),
]


@pytest.mark.parametrize("changes", [changes for _, changes in NOT_CUT], ids=[name for name, _ in NOT_CUT])
def test_not_cut_are_texts_of_a_tokenizer_with(changes: dict[str, Any]) -> None:
    assert can_be_cut(document())
    assert not can_be_cut(document(**changes))


async def test_a_tokenizer_whose_special_tokens_cannot_be_told_apart_encodes_whole() -> None:
    tokenizer = trained("gpt2")
    tokenizer.add_tokens([AddedToken("a", normalized=False)])
    a = tokenizer.token_to_id("a")
    tokenizer.post_processor = processors.TemplateProcessing(single="a $A", special_tokens=[("a", a)])
    text = TokenText(tokenizer, byte_level=True, can_be_cut=True)
    long = "b c " * 2000
    assert list(await text.encode(long, add_special_tokens=True)) == tokenizer.encode(long).ids
