"""A text file or JSONL → equal pieces of token ids that a model is calibrated with. Reads files; knows no model.

Documents follow one another without gaps, as GPTQ's authors take theirs; the pieces are spread evenly over the whole.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pagoda_worker.errors import ConfigError

FIELDS = ("text", "content", "prompt")
_SHORTEST = 32


def calibration_pieces(file: Path, tokenizer: Tokenizer, *, length: int, samples: int) -> Tensor:
    """[pieces, length] int64, at most `samples` of them; shorter than `length` when the whole file is. Raises ConfigError."""
    ids: list[int] = []
    for document in _documents(file):
        ids += tokenizer.encode(document, add_special_tokens=False).ids
    length = min(length, len(ids))
    if length < _SHORTEST:
        raise ConfigError(f"--calibration {file}: it has {len(ids)} tokens; at least {_SHORTEST}, and better 50,000, are needed")
    pieces = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return pieces[torch.linspace(0, len(pieces) - 1, min(samples, len(pieces))).round().long()]


def _documents(file: Path) -> list[str]:
    try:
        content = file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"--calibration {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--calibration {file} cannot be read: it is no UTF-8 text ({error})") from error
    if file.suffix not in (".jsonl", ".ndjson"):
        return [content]
    return [_text(file, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def _text(file: Path, number: int, line: str) -> str:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--calibration {file}, line {number}: it is no JSON ({error})") from None
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for field in FIELDS:
            if isinstance(value.get(field), str):
                return str(value[field])
        if isinstance(messages := value.get("messages"), list):
            return "\n".join(str(each.get("content", "")) for each in messages if isinstance(each, dict))
    raise ConfigError(f"--calibration {file}, line {number}: it has none of {', '.join(FIELDS)} or messages")
