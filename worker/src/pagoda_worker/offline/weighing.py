"""Bytes that a loaded model and its cache really hold, found by walking over what refers to them. Called by scoring.py.

Asks no format how large it should be: packed weights, scales and copies count as they lie in memory, each storage once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pagoda_worker.engine import Engine
from pagoda_worker.layers.adapters import AdapterSide
from pagoda_worker.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class Weighed:
    linear_bytes: int
    """Of the layers' projections: what formats quantize. The output head is not among them."""
    model_bytes: int
    """All weights: embedding, norms and output head too, however often they lie there."""
    kv_bytes_per_token: float


def weigh(engine: Engine) -> Weighed:
    model: Any = engine.runner.model
    linears = [found for found in _reached(getattr(model, "layers", model)) if isinstance(found, Linear)]
    rotary = bytes_held(getattr(model, "rotary", None))  # a table of angles: no weights
    return Weighed(
        linear_bytes=bytes_held(linears),
        model_bytes=bytes_held(model) - rotary,
        kv_bytes_per_token=bytes_held(engine.runner.caches) / engine.facts.kv_capacity_tokens,
    )


def bytes_held(owner: object) -> int:
    """Of every tensor and array that is reached from `owner` through containers and our own objects."""
    held: dict[int, int] = {}
    for found in _reached(owner):
        if isinstance(found, Tensor):
            held |= [_storage(found)]
        elif isinstance(found, np.ndarray):
            held[found.__array_interface__["data"][0]] = found.nbytes
    return sum(held.values())


def _storage(tensor: Tensor) -> tuple[int, int]:
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (RuntimeError, NotImplementedError):  # oneDNN's own layout has no storage that can be asked
        return id(tensor), tensor.numel() * tensor.element_size()


def _reached(owner: object) -> Iterator[object]:
    seen: set[int] = set()
    waiting: list[object] = [owner]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += _parts(one)


def _parts(one: object) -> list[object]:
    if isinstance(one, dict):
        return list(one.values())
    if isinstance(one, list | tuple | set | frozenset):
        return list(one)
    if isinstance(one, AdapterSide):  # room for adapters: no weights of the model
        return []
    if isinstance(one, type) or not type(one).__module__.startswith("pagoda_worker."):
        return []
    names = [name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())]
    return (
        [*vars(one).values(), *(getattr(one, name, None) for name in names)]
        if hasattr(one, "__dict__")
        else [getattr(one, name, None) for name in names]
    )
