"""Architecture name in config.json → the class that computes it. A further architecture is one file and one line here; a relative of Llama
is one parser in llama_config.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pagoda_worker.config import Quantization
from pagoda_worker.errors import ConfigError, ModelError, UnsupportedModel
from pagoda_worker.layers.operators import Operators
from pagoda_worker.models.base import Footprint, Model
from pagoda_worker.models.checkpoint import layout_in, open_checkpoint
from pagoda_worker.models.files import held_bytes
from pagoda_worker.models.formats.detection import layout_of
from pagoda_worker.models.gpt2 import GPT2
from pagoda_worker.models.llama import Llama
from pagoda_worker.models.llama_config import PARSERS
from pagoda_worker.models.placing import Placement
from pagoda_worker.models.rounded import Rounding
from pagoda_worker.models.weights import Copied, fill_linears_randomly, fill_randomly, load_weights

ARCHITECTURES: dict[str, type[GPT2] | type[Llama]] = {"GPT2LMHeadModel": GPT2, **dict.fromkeys(PARSERS, Llama)}


def architecture_of(raw: dict[str, Any]) -> str:
    """Raises UnsupportedModel for what the engine cannot compute, whatever the class."""
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(f"config.json: architectures must name one class, it is {names!r}")
    if names[0] not in ARCHITECTURES:
        raise UnsupportedModel(f"architecture {names[0]!r} is not supported; {', '.join(sorted(ARCHITECTURES))} are")
    if layout_of(raw) is not None and ARCHITECTURES[names[0]] is GPT2:
        raise UnsupportedModel(f"{names[0]} with quantization_config is not supported: only a plain checkpoint of it is")
    return names[0]


def footprint_of(raw: dict[str, Any], ranks: int = 1) -> Footprint:
    """Of each rank. Raises ConfigError when the model cannot be divided among so many."""
    return ARCHITECTURES[architecture_of(raw)].footprint(raw, ranks)


def footprint_as_stored(folder: Path, raw: dict[str, Any], itemsize: int, ranks: int = 1) -> Footprint:
    """Of each rank's part of a quantized checkpoint: what its files hold, when they are held so. `itemsize`: of what is plain. Raises
    ModelError, ConfigError."""
    size = footprint_of(raw, ranks)
    with open_checkpoint(folder, raw) as (tensors, layout):
        if layout is None or not layout.kept:
            return size
        return replace(size, stored_bytes=sum(held_bytes(name, each, itemsize) for name, each in tensors.stored.items()) // ranks)


def load_model(
    folder: Path,
    raw: dict[str, Any],
    *,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    operators: Operators,
    quantization: Quantization = "none",
    random_weights: bool = False,
    packed: bool = True,
    copied: Copied = lambda done, total: None,
) -> Model:
    """Raises ModelError, UnsupportedModel, ConfigError."""
    layout = None if random_weights else layout_in(folder, raw)
    architecture = ARCHITECTURES[architecture_of(raw)]
    if layout is not None and not packed:
        raise ConfigError("compile multiplies plain weights only, and this checkpoint is quantized: leave compile out")
    model = architecture(
        raw,
        max_model_len=max_model_len,
        dtype=dtype,
        device=device,
        operators=operators,
        deferred=layout is not None or quantization != "none",
    )
    rounded = Rounding(quantization, head=model.head)
    if random_weights:
        fill_randomly(model.destinations(), model.parts())
        fill_linears_randomly(model.linears(), Placement(layout=None, dtype=dtype, device=device, rounded=rounded, parts=model.parts()))
    else:
        with open_checkpoint(folder, raw) as (tensors, layout):
            load_weights(
                tensors,
                model.destinations(),
                [] if layout is None and quantization == "none" else model.linears(),
                Placement(layout=layout, dtype=dtype, device=device, rounded=rounded, parts=model.parts()),
                ignored_suffixes=model.ignored_suffixes,
                optional_prefix=model.optional_prefix,
                copied=copied,
            )
    rounded.tied_head()
    if packed:
        model.pack()
    return model
