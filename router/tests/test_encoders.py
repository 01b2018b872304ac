"""The fast tokenizer gives the ids of the tokenizers library, or is not used."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from trained_tokenizers import TRAINED, WORDS, document_of, trained

from pagoda_router.text.encoders import PROBE, EncodedTexts, Encoder, FastEncoder, LibraryEncoder, difference, encoder_for
from pagoda_router.text.forms import KNOWN_PATTERNS, is_proven

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "worker/src/pagoda_worker/builtin/tiny/tokenizer.json"
QWEN_3 = next(pattern for pattern in sorted(KNOWN_PATTERNS) if r"?\p{L}+|\p{N}| " in pattern)


def with_added(*tokens: AddedToken, form: Any = None) -> Tokenizer:
    tokenizer = trained(QWEN_3, form)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def by_words_first() -> Tokenizer:
    """Whole words of the vocabulary go before merges, as in Llama 3 and gpt-oss."""
    document = document_of(trained(QWEN_3))
    document["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(document))


def with_a_space_before() -> Tokenizer:
    tokenizer = trained("gpt2")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    return tokenizer


ODD = [
    Tokenizer.from_file(str(SHIPPED)),
    by_words_first(),
    with_a_space_before(),
    with_added(AddedToken("<|x|>", lstrip=True), AddedToken("cat", lstrip=True, normalized=False)),
    with_added(AddedToken("<|x|>", rstrip=True), AddedToken("cat", rstrip=True, normalized=False)),
    with_added(AddedToken("the", single_word=True, normalized=False), AddedToken("cat", single_word=True)),
    with_added(AddedToken("é", normalized=True), AddedToken("e\u0301", normalized=False), AddedToken("Å"), form=normalizers.NFC()),
    with_added(AddedToken("the", normalized=False), AddedToken("the cat", normalized=False), AddedToken("cat"), form=normalizers.NFC()),
    with_added(AddedToken("  ", normalized=True), AddedToken("\n\n", normalized=False)),
]


def both(tokenizer: Tokenizer) -> tuple[Encoder, LibraryEncoder]:
    fast = encoder_for(tokenizer.to_str().encode(), document_of(tokenizer), tokenizer)
    assert isinstance(fast, FastEncoder)
    return fast, LibraryEncoder(tokenizer)


PAIRS = [both(tokenizer) for tokenizer in (*TRAINED, *ODD)]
some_text = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6), st.just("<|x|>")), max_size=60).map("".join)


@settings(max_examples=300)
@given(texts=st.lists(some_text, max_size=4), which=st.sampled_from(range(len(PAIRS))))
def test_ids_are_those_of_the_tokenizers_library(texts: list[str], which: int) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    fast, by_library = PAIRS[which]
    assert fast.encode(texts) == by_library.encode(texts)


@pytest.mark.parametrize("files", ["docs/**/*.md", "router/src/**/*.py", "router/src/**/*.html", "bench/results/*.json"])
def test_real_text_has_the_same_ids(files: str) -> None:
    texts = [path.read_text()[:8_000] for path in sorted(ROOT.glob(files))[:12]]
    assert texts
    for fast, by_library in PAIRS:
        assert fast.encode(texts) == by_library.encode(texts)


def test_every_character_has_the_same_ids() -> None:
    alike = (range(0x3500, 0x9F00), range(0xAD00, 0xD700), range(0xD800, 0xF900), range(0x13000, 0x16800), range(0x17100, 0x1AFF0))
    everything = [chr(code) for code in range(0x20000) if not any(code in many for many in alike)]
    texts = ["".join(everything[at : at + 1024]) for at in range(0, len(everything), 1024)]
    texts += [" a".join(text) for text in texts[:4]]
    for fast, by_library in PAIRS:
        assert fast.encode(texts) == by_library.encode(texts)


@pytest.mark.parametrize(
    "repeated", [" ", "\n", " \n", "a", "A", "Aa", "!", "7", "語", "e\u0301", "가", "👨\u200d", "\x00", "\u00a0", "' "]
)
def test_long_runs_have_the_same_ids(repeated: str) -> None:
    for fast, by_library in PAIRS:
        assert fast.encode([repeated * 20_000]) == by_library.encode([repeated * 20_000])


def document(**changes: Any) -> dict[str, Any]:
    return {**document_of(TRAINED[1]), **changes}


NOT_PROVEN = [
    ("an unknown pattern", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}}),
    ("a pattern whose matches are taken out", {"pre_tokenizer": json.loads(TRAINED[1].to_str())["pre_tokenizer"]}),
    ("sentencepiece", {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}}),
    ("characters that are not bytes", {"pre_tokenizer": {"type": "Digits", "individual_digits": True}}),
    ("another normalizer", {"normalizer": {"type": "NFKC"}}),
    ("bytes for what is unknown", {"model": {"type": "BPE", "byte_fallback": True}}),
    ("marked ends of words", {"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}),
    ("unigrams", {"model": {"type": "Unigram"}}),
    ("chance", {"model": {"type": "BPE", "dropout": 0.1}}),
]
NOT_PROVEN[1][1]["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"


@pytest.mark.parametrize("changes", [changes for _, changes in NOT_PROVEN], ids=[name for name, _ in NOT_PROVEN])
def test_not_proven_is_a_tokenizer_with(changes: dict[str, Any]) -> None:
    assert is_proven(document())
    assert not is_proven(document(**changes))


def test_truncation_and_padding_of_its_training_do_not_keep_the_fast_one_from_being_used() -> None:
    tokenizer = Tokenizer.from_str(TRAINED[1].to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    raw = tokenizer.to_str().encode()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert isinstance(encoder_for(raw, document_of(tokenizer), tokenizer), FastEncoder)


def test_a_tokenizer_that_is_not_proven_is_the_librarys(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer(models.BPE())
    assert isinstance(encoder_for(tokenizer.to_str().encode(), document_of(tokenizer), tokenizer), LibraryEncoder)
    assert not caplog.records, "nothing is wrong with it"


def test_one_that_gives_other_ids_for_the_probe_is_not_used_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, other = TRAINED[1], TRAINED[2]
    encoder = encoder_for(other.to_str().encode(), document_of(tokenizer), tokenizer)
    assert isinstance(encoder, LibraryEncoder)
    (record,) = caplog.records
    assert "other ids" in record.getMessage()


def test_one_that_fastokens_cannot_read_is_not_used_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    encoder = encoder_for(b"{}", document_of(TRAINED[1]), TRAINED[1])
    assert isinstance(encoder, LibraryEncoder)
    assert len(caplog.records) == 1


class OneIdOff:
    chars_at_once = 1

    def __init__(self, by_library: LibraryEncoder, at: int) -> None:
        self._by_library = by_library
        self._at = at

    def encode(self, texts: list[str]) -> EncodedTexts:
        packed, ends = self._by_library.encode(texts)
        wrong = bytearray(packed)
        wrong[self._at * 4] ^= 1
        return EncodedTexts(bytes(wrong), ends)


@pytest.mark.parametrize("at", [0, 100, -1])
def test_the_probe_sees_a_single_id(at: int) -> None:
    by_library = LibraryEncoder(TRAINED[1])
    assert difference(OneIdOff(by_library, at), by_library, ["<|end|>"]) is not None
    assert difference(by_library, by_library, ["<|end|>"]) is None


def test_the_probe_tells_the_patterns_apart() -> None:
    documents = [{**document_of(tokenizer), "normalizer": None, "model": document_of(TRAINED[0])["model"]} for tokenizer in TRAINED]
    ids = [LibraryEncoder(Tokenizer.from_str(json.dumps(document))).encode([PROBE]) for document in documents]
    assert all(one != other for (at, one), (to, other) in product(enumerate(ids), repeat=2) if at != to)
