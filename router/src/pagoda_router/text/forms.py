"""What a tokenizer.json says of how it works, as far as it decides how its texts may be encoded: in pieces, and by which library. Pure.

A text may be cut between an ASCII letter or digit and a space. That changes no token where

    the normalizer looks at no neighbour across an ASCII space       none, NFC, or NFKC
    every piece that the pre-tokenizer makes ends at such a place    GPT-2's rule and the patterns in KNOWN_PATTERNS: no alternative of
                                                                     them matches a letter or digit and a space after it, none looks back
    no added token lies across such a place, or takes spaces after   read from the tokenizer's file

since BPE works on one piece at a time. Other tokenizers (sentencepiece: spaces are letters to it) encode every text whole.
"""

import re
from typing import Any

_SPACE_AFTER_WORD = re.compile(r"[A-Za-z0-9] ")
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3_PATTERN = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS
"""And cl100k's."""
KNOWN_PATTERNS = frozenset(
    {
        LLAMA_3_PATTERN,
        # Qwen 2, 2.5 and 3
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS,
        # Qwen 3.5 and later: marks are part of words
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _BLANKS,
        # o200k: gpt-oss, Llama 4
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _BLANKS,
        # DeepSeek V3 and R1, behind the two below
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _BLANKS,
        # our tiny model: a word that begins with an upper-case letter leaves the space to what is before it
        r" ?[^\s\p{L}\p{N}]+ (?=[\p{N}\p{Lu}])|\p{Lu}[\p{L}\p{M}]*| ?(?!\p{Lu})[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    }
)
"""Of a Split, as they stand in tokenizer.json. Each ends a piece wherever a text may be cut, whatever stands before it in the text."""
DIVIDING_PATTERNS = frozenset({r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+"})
"""Of a Split beside one of those: numbers by three digits, and words of Chinese and Japanese, of their own. They hold no spaces."""


def can_be_cut(document: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is one of those whose texts may be cut."""
    return (
        _is_certain_bpe(document)
        and _normalizers(document) <= {"NFC", "NFKC"}
        and _ends_pieces(document)
        and all(_keeps_apart(token) for token in document.get("added_tokens") or [])
    )


def is_proven(document: dict[str, Any]) -> bool:
    """Whether fastokens was shown to give the ids of the tokenizers library for such a tokenizer.json (tests/test_encoders.py)."""
    model = document["model"] or {}
    return (
        _is_certain_bpe(document)
        and not any(model.get(key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"))
        and _normalizers(document) <= {"NFC"}
        and _ends_pieces(document)
        and any(step.get("type") == "ByteLevel" for step in _steps(document))
    )


def _is_certain_bpe(document: dict[str, Any]) -> bool:
    model = document.get("model") or {}
    return model.get("type") == "BPE" and not model.get("dropout")


def _normalizers(document: dict[str, Any]) -> set[str]:
    normalizer = document.get("normalizer")
    if normalizer is None:
        return set()
    parts = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
    return {str(part.get("type")) for part in parts or []}


def _steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    pre_tokenizer = document.get("pre_tokenizer") or {}
    return (pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]) or []


def _ends_pieces(document: dict[str, Any]) -> bool:
    """At least one of the pre-tokenizer's steps cuts where we do; none has another view of it."""
    ends = False
    for step in _steps(document):
        if step.get("type") == "ByteLevel":
            ends = ends or step.get("use_regex") is True
        elif step.get("type") == "Split":
            pattern = (step.get("pattern") or {}).get("Regex")
            if step.get("behavior") != "Isolated" or step.get("invert") or pattern not in KNOWN_PATTERNS | DIVIDING_PATTERNS:
                return False
            ends = ends or pattern in KNOWN_PATTERNS
        elif step.get("type") != "Digits":
            return False
    return ends


def _keeps_apart(token: dict[str, Any]) -> bool:
    content = str(token.get("content"))
    return not (_SPACE_AFTER_WORD.search(content) or (token.get("single_word") and content.startswith(" ")) or token.get("rstrip"))
