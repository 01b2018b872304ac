"""The smaller model that guesses for a larger one: whether the two go together, how large it is, and its weights. Called by the loader's
sums and by the engine for each runner.
"""

import json
from pathlib import Path
from typing import Any

import torch

from pagoda_worker.config import EngineConfig, Quantization
from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.selection import operators_for
from pagoda_worker.models.base import Footprint, Model
from pagoda_worker.models.checkpoint import layout_in, read_config
from pagoda_worker.models.registry import footprint_of, load_model
from pagoda_worker.models.texts import read_tokenizer_json


def draft_footprint(config: EngineConfig) -> Footprint | None:
    """Raises ModelError."""
    return None if config.draft_dir is None else footprint_of(read_config(config.draft_dir))


def check_draft(config: EngineConfig, size: Footprint) -> None:
    """`size`: of the model that is guessed for. Raises ConfigError."""
    draft = draft_footprint(config)
    if draft is None or config.draft_dir is None:
        return
    if draft.vocab != size.vocab:
        raise ConfigError(
            f"the draft model has {draft.vocab} tokens and the model {size.vocab}: a draft is of the same family and shares its tokenizer"
        )
    if _words(config.draft_dir) != _words(config.model_dir):
        raise ConfigError("the draft model's tokenizer.json has other tokens than the model's: a draft is of the same family")


def _words(folder: Path) -> object:
    """Tokens and their numbers, the added ones too, which stand in one place or the other. None: it has no tokenizer to compare."""
    try:
        tokenizer = json.loads(read_tokenizer_json(folder))
    except (ModelError, UnsupportedModel):
        return None
    return {
        **dict(tokenizer.get("model", {}).get("vocab", {})),
        **{each["content"]: each["id"] for each in tokenizer.get("added_tokens", [])},
    }


def load_draft(config: EngineConfig, *, dtype: torch.dtype, device: torch.device, max_model_len: int) -> Model | None:
    """Read anew for every runner: it is small, and keeps nothing awake while the engine sleeps. Raises ModelError."""
    if config.draft_dir is None:
        return None
    raw = read_config(config.draft_dir)
    size = footprint_of(raw)
    operators = operators_for(config, device, dtype=dtype, head_dim=size.cache.head_dim)
    return load_model(
        config.draft_dir,
        raw,
        max_model_len=min(max_model_len, size.max_position),
        dtype=dtype,
        device=device,
        operators=operators,
        quantization=_rounded_to(config, raw, operators, dtype),
        random_weights=config.random_weights,
    )


def _rounded_to(config: EngineConfig, raw: dict[str, Any], operators: Operators, dtype: torch.dtype) -> Quantization:
    """Who only guesses may be rounded: what is wrong is not accepted. Not float32, which is asked for to be exact."""
    assert config.draft_dir is not None
    if config.draft_quantization is not None:
        return config.draft_quantization
    stored = not config.random_weights and layout_in(config.draft_dir, raw) is not None
    fits = isinstance(operators, NativeOperators) and operators.prefers_int8 and dtype == torch.bfloat16
    return "int8" if fits and not stored else "none"
