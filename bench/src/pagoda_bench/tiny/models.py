"""Owns the model shapes and the Hugging Face folders they are saved to.

Called by training and evaluation; the folders are read by the worker like any other Llama checkpoint.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from pagoda_bench.tiny import tokenizer as tok

CONTEXT = 2048
"""Tokens. RoPE has no table to fill, but conversations longer than about 500 tokens are not trained."""

REPOSITORY = Path(__file__).resolve().parents[4]
BUILTIN = REPOSITORY / "worker" / "src" / "pagoda_worker" / "builtin"
FOLDERS: Mapping[str, Path] = {"target": BUILTIN / "tiny", "draft": BUILTIN / "tiny-draft"}

SHAPES: Mapping[str, Mapping[str, int]] = {
    "target": {"hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 640},
    "large": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1408},
    "draft": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128},
}
"""Target and draft are shipped. `large` is not: 25 million parameters, of which the target is a draft (docs/speculation.md)."""


def new_model(name: str, seed: int) -> LlamaForCausalLM:
    """An untrained model of one of the shapes, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tok.VOCABULARY_SIZE,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tok.END_ID,
        pad_token_id=tok.PAD_ID,
        **SHAPES[name],
    )
    return LlamaForCausalLM(config)


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes an ordinary Hugging Face folder with bfloat16 weights; `model` itself keeps its dtype."""
    shipped = deepcopy(model).to(torch.bfloat16)
    shipped.generation_config = GenerationConfig(eos_token_id=tok.END_ID, pad_token_id=tok.PAD_ID, do_sample=False)
    shipped.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tok.save_tokenizer(tokenizer, folder, CONTEXT)


def load_model(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    assert isinstance(model, LlamaForCausalLM)
    return model.eval()
