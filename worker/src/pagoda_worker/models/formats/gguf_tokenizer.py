"""The tokenizer in a GGUF file's metadata → the tokenizer.json that the model was published with. Pure.

Only where the two are the same thing: byte-level BPE, whose tokens and merges are in the file whole, cut by a rule that is known by its
name. Of SentencePiece's the file has scores, and not how the model was made to split: those are refused. Called by texts.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.models.formats.gguf_file import GgufFile

PREFIX = "tokenizer."
"""Of the metadata whose lists are needed here."""
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True)
class _Cut:
    """How text is cut before the merges, as the models of that name do."""

    steps: Sequence[Mapping[str, Any]]
    normal_form: str | None = None
    whole_words_first: bool = False
    """A piece that is a token is that token, whatever the merges say."""
    begins: bool = False
    """With the first token, where the file does not say."""


def _bytes(*, words: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


def _split(numbers: str) -> list[dict[str, Any]]:
    return [
        {"type": "Split", "pattern": {"Regex": _WORDS.format(numbers=numbers)}, "behavior": "Isolated", "invert": False},
        _bytes(words=False),
    ]


_LLAMA_3 = _Cut(_split(r"\p{N}{1,3}"), whole_words_first=True, begins=True)
_CUTS: Mapping[str, _Cut] = {
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "qwen2": _Cut(_split(r"\p{N}"), normal_form="NFC"),
    "gpt-2": _Cut([_bytes(words=True)]),
    "smollm": _Cut([{"type": "Digits", "individual_digits": True}, _bytes(words=True)]),
}


def tokenizer_of(file: GgufFile) -> dict[str, Any]:
    """`file`: with its lists of the tokenizer. Raises ModelError for a damaged one, UnsupportedModel for one that is not exactly known."""
    cut, tokens = _cut_of(file), _texts(file, "tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ModelError(f"{file.path}: its tokenizer holds a token twice; the file is damaged")
    merges = [each.split(" ") for each in _texts(file, "merges")]
    if wrong := next((each for each in merges if len(each) != 2 or "".join(each) not in vocabulary), None):
        raise ModelError(f"{file.path}: its tokenizer merges {' '.join(wrong)!r}, which are no two halves of a token; the file is damaged")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(file, tokens),
        "normalizer": None if cut.normal_form is None else {"type": cut.normal_form},
        "pre_tokenizer": cut.steps[0] if len(cut.steps) == 1 else {"type": "Sequence", "pretokenizers": list(cut.steps)},
        "post_processor": _around(file, tokens, cut),
        "decoder": _bytes(words=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut.whole_words_first,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def special_tokens_of(file: GgufFile) -> dict[str, str]:
    """As tokenizer_config.json names them; those that the file tells."""
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    told = file.metadata.get("tokenizer.ggml.tokens")
    tokens = told if isinstance(told, list) else []
    numbers = {name: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    return {name: tokens[number] for name, number in numbers.items() if isinstance(number, int) and 0 <= number < len(tokens)}


def chat_template_of(file: GgufFile) -> str:
    """Empty: it has none."""
    template = file.metadata.get("tokenizer.chat_template", "")
    return template if isinstance(template, str) else ""


def _cut_of(file: GgufFile) -> _Cut:
    model, name = file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre")
    instead = "put the tokenizer.json of the model it was made of beside it"
    if model != "gpt2":
        raise UnsupportedModel(
            f"{file.path}: its tokenizer is of the kind {model!r}, of which only 'gpt2' (byte-level BPE) is read: {instead}"
        )
    if not isinstance(name, str) or name not in _CUTS:
        known = ", ".join(_CUTS)
        raise UnsupportedModel(f"{file.path}: its tokenizer cuts text as {name!r} does, and only {known} are known exactly: {instead}")
    return _CUTS[name]


def _texts(file: GgufFile, name: str) -> list[str]:
    found = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ModelError(f"{file.path}: its metadata has no list of texts tokenizer.ggml.{name}")
    return found


def _added(file: GgufFile, tokens: list[str]) -> list[dict[str, Any]]:
    kinds = file.metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.token_type does not tell a kind for each of {len(tokens)} tokens")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": number, "content": token, **flags, "special": kind in (_CONTROL, _UNKNOWN)}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind not in (_NORMAL, _UNUSED)
    ]


def _around(file: GgufFile, tokens: list[str], cut: _Cut) -> dict[str, Any]:
    """What stands before and after every text."""
    ends = {
        "bos": file.metadata.get("tokenizer.ggml.add_bos_token", cut.begins),
        "eos": file.metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    numbers = {name: _number(file, name, len(tokens)) for name, wanted in ends.items() if wanted}
    trimmed = _bytes(words=True)
    if not numbers:
        return trimmed
    marks = {name: {"SpecialToken": {"id": tokens[number], "type_id": 0}} for name, number in numbers.items()}
    text = [{"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB")]
    before, after = ([marks[name]] if name in marks else [] for name in ("bos", "eos"))
    template = {
        "type": "TemplateProcessing",
        "single": [*before, text[0], *after],
        "pair": [*before, text[0], *after, *before, text[1], *after],
        "special_tokens": {
            tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]} for number in numbers.values()
        },
    }
    return {"type": "Sequence", "processors": [trimmed, template]}


def _number(file: GgufFile, name: str, count: int) -> int:
    """Of the token that every text is to have."""
    number = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if not isinstance(number, int) or not 0 <= number < count:
        raise ModelError(f"{file.path}: tokenizer.ggml.{name}_token_id is {number!r}, no token, and every text is to have it")
    return number
