"""Ids to text: any partition of any text reassembles, and no piece ends inside a character."""

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import byte_level_tokenizer, sentencepiece_tokenizer
from tokenizers import Tokenizer

from pagoda_router.errors import UpstreamFailed
from pagoda_router.text.tokens import ByteLevelDetokenizer, TokenizerCache, TokenText, WindowDetokenizer, load_tokenizer

SHIPPED = Path(__file__).parents[2] / "worker/src/pagoda_worker/builtin/tiny/tokenizer.json"
BYTE_LEVEL = byte_level_tokenizer()
BYTE_LEVEL_TEXT = TokenText(BYTE_LEVEL, byte_level=True)
SENTENCEPIECE = sentencepiece_tokenizer()
SENTENCEPIECE_TEXT = TokenText(SENTENCEPIECE, byte_level=False)


def streamed(
    text: TokenText, ids: list[int], cuts: list[int], *, prompt_ids: list[int] | None = None, truncated: bool = False
) -> list[str]:
    detokenizer = text.detokenizer(prompt_ids or [], skip_special_tokens=True)
    cuts = sorted(min(cut, len(ids)) for cut in cuts)
    pieces = [detokenizer.feed(ids[start:end]) for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    return [*pieces, detokenizer.end(truncated=truncated)]


any_text = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40)
cuts_of = st.lists(st.integers(0, 200), max_size=60)


@given(text=any_text, cuts=cuts_of)
def test_any_text_streamed_in_any_partition_reassembles_byte_level(text: str, cuts: list[int]) -> None:
    pieces = streamed(BYTE_LEVEL_TEXT, BYTE_LEVEL.encode(text, add_special_tokens=False).ids, cuts)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=60)
@given(text=any_text, cuts=cuts_of)
def test_any_text_streamed_in_any_partition_reassembles_sentencepiece(text: str, cuts: list[int]) -> None:
    ids = SENTENCEPIECE.encode(text, add_special_tokens=False).ids
    pieces = streamed(SENTENCEPIECE_TEXT, ids, cuts)
    assert "".join(pieces) == SENTENCEPIECE.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 3), max_size=30), cuts=cuts_of)
def test_any_ids_at_all_decode_as_the_tokenizers_library_does(ids: list[int], cuts: list[int]) -> None:
    assert "".join(streamed(BYTE_LEVEL_TEXT, ids, cuts)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


def test_a_continued_text_keeps_the_space_before_its_first_word() -> None:
    ids = SENTENCEPIECE.encode("hello world", add_special_tokens=False).ids
    head = len(SENTENCEPIECE.encode("hello", add_special_tokens=False).ids)
    assert "".join(streamed(SENTENCEPIECE_TEXT, ids[head:], [], prompt_ids=ids[:head])) == " world"


@pytest.mark.parametrize(
    ("text", "tokenizer"), [(BYTE_LEVEL_TEXT, BYTE_LEVEL), (SENTENCEPIECE_TEXT, SENTENCEPIECE)], ids=["byte", "window"]
)
def test_a_character_cut_by_the_limit_is_dropped_and_one_left_broken_by_the_model_is_shown(text: TokenText, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab☃", add_special_tokens=False).ids[:-1]
    assert "".join(streamed(text, ids, [], truncated=True)).strip() == "ab"
    assert "\ufffd" in "".join(streamed(text, ids, [], truncated=False))


def test_invalid_bytes_do_not_hold_the_stream_back_for_ever() -> None:
    broken = SENTENCEPIECE.token_to_id("<0xFF>")
    detokenizer = SENTENCEPIECE_TEXT.detokenizer([], skip_special_tokens=True)
    assert isinstance(detokenizer, WindowDetokenizer)
    shown = [detokenizer.feed([broken]) for _ in range(50)]
    assert sum(map(bool, shown)) > 5


def test_special_tokens_show_only_when_asked_for() -> None:
    ids = BYTE_LEVEL.encode("<|user|>hi<|end|>").ids
    assert BYTE_LEVEL_TEXT.detokenizer([], skip_special_tokens=True).feed(ids) == "hi"
    assert BYTE_LEVEL_TEXT.detokenizer([], skip_special_tokens=False).feed(ids) == "<|user|>hi<|end|>"


@pytest.mark.parametrize(
    ("text", "token", "raw"), [(BYTE_LEVEL_TEXT, "Ġ", b" "), (SENTENCEPIECE_TEXT, "<0xC3>", b"\xc3"), (SENTENCEPIECE_TEXT, "▁h", b" h")]
)
def test_a_single_token_is_its_bytes(text: TokenText, token: str, raw: bytes) -> None:
    tokenizer = BYTE_LEVEL if text is BYTE_LEVEL_TEXT else SENTENCEPIECE
    assert text.token_bytes(tokenizer.token_to_id(token)) == raw


def test_an_unknown_id_is_nothing() -> None:
    assert BYTE_LEVEL_TEXT.token_bytes(10**9) == b""
    assert BYTE_LEVEL_TEXT.token_bytes(-1) == b""


@given(text=any_text)
def test_the_cheap_bound_never_exceeds_the_true_length(text: str) -> None:
    assert BYTE_LEVEL_TEXT.least_tokens(text) <= len(BYTE_LEVEL.encode(text).ids)


async def test_long_texts_are_encoded_off_the_event_loop_with_the_same_ids() -> None:
    text = "the quick brown fox " * 2000
    assert list(await BYTE_LEVEL_TEXT.encode(text, add_special_tokens=False)) == BYTE_LEVEL.encode(text, add_special_tokens=False).ids


async def test_a_tokenizer_is_loaded_once_and_the_oldest_leave(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{i}.json") for i in range(3)]
    for file in files:
        BYTE_LEVEL.save(file)
    cache = TokenizerCache(max_tokenizers=2)
    first, again = await asyncio.gather(cache.get(files[0]), cache.get(files[0]))
    assert first is again
    await cache.get(files[1])
    await cache.get(files[2])
    assert await cache.get(files[0]) is not first


async def test_a_cancelled_first_request_does_not_cancel_those_that_wait_with_it(tmp_path: Path) -> None:
    file = str(tmp_path / "tokenizer.json")
    BYTE_LEVEL.save(file)
    cache = TokenizerCache()
    first = asyncio.create_task(cache.get(file))
    second = asyncio.create_task(cache.get(file))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).token_bytes(BYTE_LEVEL.token_to_id("Ġ")) == b" "
    assert first.cancelled()


async def test_an_unreadable_tokenizer_is_named_and_may_be_there_later(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    cache = TokenizerCache()
    with pytest.raises(UpstreamFailed, match="tokenizer cannot be read"):
        await cache.get(str(file))
    BYTE_LEVEL.save(str(file))
    assert await cache.get(str(file))


def test_training_time_truncation_and_padding_are_off(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert list(asyncio.run(loaded.encode("the quick brown fox", add_special_tokens=False))) == BYTE_LEVEL.encode("the quick brown fox").ids


def test_the_shipped_tokenizer_is_byte_level() -> None:
    text = load_tokenizer(str(SHIPPED))
    assert isinstance(text.detokenizer([], skip_special_tokens=True), ByteLevelDetokenizer)
    tokenizer = Tokenizer.from_file(str(SHIPPED))
    for sample in ("12 + 30 = 42", '{"name": "größe 🎉"}', "你好"):
        ids = tokenizer.encode(sample, add_special_tokens=False).ids
        assert "".join(streamed(text, ids, list(range(len(ids))))) == sample
    assert json.loads(SHIPPED.read_bytes())["decoder"]["type"] == "ByteLevel"
