"""Architecture name in config.json → the class that computes it. A further architecture is one file and one line here."""

from pathlib import Path
from typing import Any

import torch

from pagoda_worker.errors import ModelError, UnsupportedModel
from pagoda_worker.layers.attention import Attend
from pagoda_worker.models.base import Model
from pagoda_worker.models.llama import Llama
from pagoda_worker.weights import load_weights

ARCHITECTURES = {"LlamaForCausalLM": Llama}


def architecture_of(raw: dict[str, Any]) -> str:
    """Raises UnsupportedModel for what the engine cannot compute, whatever the class."""
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(f"config.json: architectures must name one class, it is {names!r}")
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModel(f"architecture {names[0]!r} is not supported; {', '.join(sorted(ARCHITECTURES))} is")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModel(
            f"{names[0]} with quantization_config (quant_method {method!r}) is not supported yet: use an unquantized checkpoint"
        )
    return names[0]


def load_model(folder: Path, raw: dict[str, Any], *, max_model_len: int, dtype: torch.dtype, device: torch.device, attend: Attend) -> Model:
    model: Model = ARCHITECTURES[architecture_of(raw)](raw, max_model_len=max_model_len, dtype=dtype, device=device, attend=attend)
    load_weights(folder, model.destinations(), ignored_suffixes=model.ignored_suffixes)
    model.pack()
    return model
