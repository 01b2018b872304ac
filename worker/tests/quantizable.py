"""What `pagoda quantize` needs: a small model in bf16 with a tokenizer of whole words, and text of them."""

import json
from pathlib import Path
from shutil import copytree

import torch
from random_checkpoint import VOCAB
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit


def with_tokenizer(plain: Path, target: Path) -> Path:
    copytree(plain, target)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(target / "tokenizer.json"))
    if json.loads((plain / "config.json").read_text())["dtype"] == "bfloat16":
        save_file({name: t.bfloat16() for name, t in load_file(plain / "model.safetensors").items()}, target / "model.safetensors")
    return target


def write_text(file: Path) -> Path:
    words = torch.multinomial(torch.arange(1, VOCAB + 1.0) ** -0.8, 2000, replacement=True, generator=torch.Generator().manual_seed(0))
    file.write_text(" ".join(f"w{word}" for word in words.tolist()))
    return file
