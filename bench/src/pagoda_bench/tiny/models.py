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
from pagoda_bench.tiny.growth import grown

CONTEXT = 2048
"""Tokens. RoPE has no table to fill, but conversations longer than about 500 tokens are not trained."""

REPOSITORY = Path(__file__).resolve().parents[4]
BUILTIN = REPOSITORY / "worker" / "src" / "pagoda_worker" / "builtin"
FOLDERS: Mapping[str, Path] = {"target": BUILTIN / "tiny", "draft": BUILTIN / "tiny-draft"}

SHAPES: Mapping[str, Mapping[str, int]] = {
    "target": {"hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 640},
    "draft": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128},
}
"""Both are shipped."""

LARGE = "large"
"""Not shipped: the target grown to four times its width and twice its layers, 111 million parameters, and trained on. It shows what the
shipped draft is worth to a model further away from it (docs/speculation.md)."""
LARGE_WIDTH, LARGE_DEPTH = 4, 2


def new_model(name: str, seed: int) -> LlamaForCausalLM:
    """Where training begins, in float32: a random model of one of the shapes, or the grown target."""
    if name == LARGE:
        return grown(load_model(FOLDERS["target"], torch.float32), width=LARGE_WIDTH, depth=LARGE_DEPTH, seed=seed)
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
