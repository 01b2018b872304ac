"""The tokenizer in a GGUF file is the one that was written into it: the same ids, the same text, the same special tokens."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from front_support import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.front.artifacts import read_artifacts
from pagoda_worker.models.texts import read_texts, read_tokenizer_json

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_2 = LLAMA_3.replace("{1,3}", "")
TEXT = [
    "It's 1234567 o'clock; we'LL see 12 cafés\n\n  and naïve Zürich, 東京 — ok?",
    "def f(x):\n\treturn x ** 2  # squares",
    " 3.14 !!\r\n",
] * 3
SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>"]


def cut(*steps: Any) -> Any:
    return pre_tokenizers.Sequence([*steps])


def level(*, words: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)


CUTS: dict[str, Any] = {
    "llama-bpe": cut(pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), level(words=False)),
    "qwen2": cut(pre_tokenizers.Split(Regex(QWEN_2), "isolated"), level(words=False)),
    "gpt-2": level(words=True),
    "smollm": cut(pre_tokenizers.Digits(individual_digits=True), level(words=True)),
}


def published(name: str) -> Tokenizer:
    """As the models of that name publish theirs, of a few hundred tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = CUTS[name], decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=330, special_tokens=[], initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<tool>"])
    if name == "llama-bpe":
        begin = SPECIAL[0]
        template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, *, pre: str, model: str = "gpt2", merges: Sequence[str] | None = None) -> Path:
    """Its metadata as llama.cpp's converter writes it; no weights."""
    folder.mkdir()
    told = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    kinds = {each["id"]: 3 if each["special"] else 4 for each in told["added_tokens"]}
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokenizer.id_to_token(each) for each in range(size)])
    writer.add_token_types([kinds.get(each, 1) for each in range(size)])
    writer.add_token_merges([" ".join(each) for each in told["model"]["merges"]] if merges is None else merges)
    writer.add_bos_token_id(tokenizer.token_to_id(SPECIAL[0]))
    writer.add_eos_token_id(tokenizer.token_to_id(SPECIAL[1]))
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((size, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.fixture(scope="module", params=CUTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The published one, and the one that was read."""
    original = published(request.param)
    folder = write(tmp_path_factory.mktemp(request.param) / "model", original, pre=request.param)
    return original, Tokenizer.from_str(read_tokenizer_json(folder))


PIECES = st.sampled_from([*TEXT, *SPECIAL, "<tool>", "'S", "1234", " \n", "e\u0301", "\u00a0", "x", "  ", "Straße", "\u2028"])


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=6).map("".join))
def test_its_ids_and_its_text_are_those_of_the_published_tokenizer(pair: tuple[Tokenizer, Tokenizer], text: str):
    original, read = pair
    for special in (True, False):
        ids = original.encode(text, add_special_tokens=special).ids
        assert read.encode(text, add_special_tokens=special).ids == ids
        assert read.decode(ids, skip_special_tokens=special) == original.decode(ids, skip_special_tokens=special)


def test_template_and_special_tokens_come_from_the_file_too(tmp_path: Path):
    folder = write(tmp_path / "model", published("gpt-2"), pre="gpt-2")
    texts = read_texts(folder)
    assert (texts.chat_template, texts.special_tokens) == ("{{ messages }}", {"bos_token": "<|begin|>", "eos_token": "<|end|>"})
    assert read_artifacts(folder).tokenizer.content.decode() == texts.tokenizer


def test_a_file_beside_it_wins(tmp_path: Path):
    folder = write(tmp_path / "model", published("gpt-2"), pre="gpt-2")
    beside = (TINY / "tokenizer.json").read_text("utf-8")
    (folder / "tokenizer.json").write_text(beside, "utf-8")
    assert read_tokenizer_json(folder) == beside


@pytest.mark.parametrize(
    ("error", "words", "changes"),
    [
        (UnsupportedModel, "is of the kind 'llama', of which only 'gpt2'", {"model": "llama"}),
        (UnsupportedModel, "cuts text as 'default' does, and only llama-bpe", {"pre": "default"}),
        (ModelError, "merges 'a b c', which are no two halves", {"merges": ["a b c"]}),
        (ModelError, "merges 'zq qz', which are no two halves", {"merges": ["zq qz"]}),
    ],
)
def test_a_tokenizer_that_is_not_exactly_known_is_refused_in_one_sentence(
    tmp_path: Path, error: type[Exception], words: str, changes: dict[str, Any]
):
    folder = write(tmp_path / "model", published("gpt-2"), **{"pre": "gpt-2", **changes})
    with pytest.raises(error, match=words):
        read_tokenizer_json(folder)
