"""A vocabulary that cuts the benchmark's prose as today's cut prose, in pieces of 4.5 bytes: the tiny model's makes them of 1.9.

Byte-level BPE with Llama 3's pattern, trained on prose that is in no prompt, and kept in the user's cache. Called by run.py.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BYTES = 8_000_000
SIZE = 1500
"""Entries: this prose has few words, and another 100 000 entries would be of texts that no prompt here has."""
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Llama 3's, as the router has it in text/forms.py: with another one it would not cut these texts into pieces."""
TIMEOUT_S = 60.0
LINE = 10_000


def trained(program: Path, tiny: Path) -> Path:
    """A tokenizer.json with the special tokens of `tiny`, another one. `program`: the compiled rig, whose prose it is."""
    path = program.with_name(f"{program.name}-{SIZE}.json")
    if path.exists():
        return path
    prose = subprocess.run([str(program), "prose", f"-bytes={BYTES}"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout
    special = [token["content"] for token in json.loads(tiny.read_text())["added_tokens"]]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_lines(prose), trainer)
    unfinished = path.with_suffix(f".{os.getpid()}")
    tokenizer.save(str(unfinished))
    unfinished.replace(path)
    return path


def _lines(text: str) -> Iterator[str]:
    return (text[at : at + LINE] for at in range(0, len(text), LINE))
