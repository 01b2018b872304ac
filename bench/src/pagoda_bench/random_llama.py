"""Writes an ordinary Hugging Face folder of a Llama with random weights: a model of a given size to time, without a download.

The tokenizer is byte-level with filler entries up to the vocabulary's size, so that every id decodes to some text.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM


def write_half_billion(folder: Path, *, seed: int = 0) -> None:
    """The 0.45B Llama of the first figures: hidden 1024, 24 layers, 16 heads, 8 KV heads, intermediate 4096, vocabulary 32 000, untied,
    bf16. A folder that is already complete is left alone."""
    config = LlamaConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=4096,
        vocab_size=32_000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=31_999,
        dtype="bfloat16",
    )
    if (folder / "tokenizer_config.json").exists():
        return
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    write_filler_tokenizer(folder, config.vocab_size)


def write_filler_tokenizer(folder: Path, vocab_size: int) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {f"w{i}": i for i in range(len(letters), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
