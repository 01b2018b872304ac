"""Byte-level BPE tokenizers, trained here over every pattern that is known, and words whose borders they see differently."""

import json
from random import Random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pagoda_router.text.forms import DIVIDING_PATTERNS, KNOWN_PATTERNS

WORDS = (
    *(
        "the cat",
        " 12 345 ",
        "it's",
        "don't",
        "\n\n",
        "  ",
        "\t",
        "... ",
        "<|end|>",
        "<|user|>",
        "naïve",
        "Ünïcode",
        "日本語。",
        "مرحبا",
        "🙂🙂",
    ),
    *("a", "Z", "9", "x=5; ", "e\u0301", "\u0301", "\ufb01", "/", "\r\n", "\u00a0", "CamelCase", "snake_case", "</p> <p>"),
    *("I'LL ", "'s", " '", "0 0 0", "1234567", "<|us", "|>", " <|end|> ", "가", "\u1100", "\u1161", "\u212b", "\u0345", "\u0f73", "½", "Ⅷ"),
    *("ǅ", "ʰ", "İ", "\x00", "\x1f", "\x85", "\u2028", "\u3000", "👨\u200d👩", "✈\ufe0f"),
)


def trained(pattern: str, form: Any = None, *before: str) -> Tokenizer:
    """BPE over this pattern, behind those `before` it, of our own words, so that merges cross everything that they may cross."""
    tokenizer = Tokenizer(models.BPE())
    if form is not None:
        tokenizer.normalizer = form
    split = [] if pattern == "gpt2" else [pre_tokenizers.Split(Regex(each), "isolated") for each in (*before, pattern)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<|end|>", "<|user|>", "<s>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    rng = Random(1)
    tokenizer.train_from_iterator(["".join(rng.choices(WORDS, k=200)) for _ in range(50)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


def document_of(tokenizer: Tokenizer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


PATTERNS = ["gpt2", *sorted(KNOWN_PATTERNS)]
TRAINED = [
    *[trained(pattern, normalizers.NFC() if at % 2 else None) for at, pattern in enumerate(PATTERNS)],
    *[trained(pattern, normalizers.Sequence([]), *sorted(DIVIDING_PATTERNS, reverse=True)) for pattern in PATTERNS if "Za-z" in pattern],
]
