"""Owns the byte-level BPE tokenizer, its chat template, and the turning of conversations into ids with a loss mask.

The router renders the same template from `tokenizer_config.json`; `render` here is its twin for speed, and a test compares the two.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pagoda_bench.tiny.items import Message

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
PAD_ID, END_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID = range(len(SPECIAL_TOKENS))
VOCABULARY_SIZE = 1024

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('this model knows the roles system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

# Words keep the space before them, digits stand alone, and punctuation before a digit or a capital takes the space after it (", 7").
# Capitalized words never carry a space: a name in prose (`is Ana`) and in JSON (`"Ana"`) is the same tokens, so copying one is copying.
_PIECES = r" ?[^\s\p{L}\p{N}]+ (?=[\p{N}\p{Lu}])|\p{Lu}[\p{L}\p{M}]*| ?(?!\p{Lu})[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of VOCABULARY_SIZE ids: special tokens first, then the 256 bytes, then merges. Any UTF-8 text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`; `context` is the model's limit in tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def render(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as CHAT_TEMPLATE renders it."""
    turns = "".join(f"<|{message['role']}|>{message['content'].strip()}{END}" for message in messages)
    return turns + ASSISTANT if add_generation_prompt else turns


def answer_mask(ids: Sequence[int]) -> list[bool]:
    """True at each position whose token the assistant must produce: its words and its end of turn."""
    mask, answering = [], False
    for token in ids:
        mask.append(answering)
        if token == ASSISTANT_ID:
            answering = True
        elif token == END_ID:
            answering = False
    return mask
