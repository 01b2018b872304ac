"""A small Llama's guesses by one call of the CPU's own kernels (native/drafting.h), where all of it is of the forms that those take.

Owns what that call reads of the model, laid out once. Called by execution/drafter.py, which else goes operation by operation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.native import NativeOperators, NativeProduct
from pagoda_worker.models.base import ForwardPass
from pagoda_worker.models.llama import Llama, LlamaLayer

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Guesses:
    """Of each member, in the order in which they were asked for."""

    ids: npt.NDArray[np.int32]
    """[members, most]."""
    chances: npt.NDArray[np.float32]
    """[members, most]: how likely the model thinks this guess and all before it."""
    made: Int64
    """[members]: guesses that stand there."""


class NativeDrafting:
    def __init__(
        self, model: Llama, operators: NativeOperators, caches: list[Tensor], tokens: Tensor, tables: Tensor, block_size: int
    ) -> None:
        """As `native_drafting`."""
        c = model.config
        self._call = operators.library["draft"]
        self._eps, self._scale = c.eps, c.head_dim**-0.5
        layers = [
            [*_pointers(layer), cache.data_ptr(), window or 0] for layer, cache, window in zip(model.layers, caches, c.windows, strict=True)
        ]
        self._layers = np.array(layers, np.int64)
        addresses = (model.embedding, model.norm, _packed(model.head), model.rotary.cos, model.rotary.sin, tokens, tables)
        sizes = (c.layers, c.hidden, c.intermediate, c.heads, c.kv_heads, c.head_dim, c.vocab, caches[0].shape[2], block_size)
        whole = [self._layers.ctypes.data, *(each.data_ptr() for each in addresses), *sizes, tokens.shape[1], tables.shape[1]]
        self._model = np.array(whole, np.int64)
        self._kept = (model, caches, tokens, tables)
        """Whose memory the numbers name."""

    def guess(self, unread: tuple[Int64, Int64], ends: Int64, rows: Int64, at: Int64, wanted: Int64, *, least: float) -> Guesses:
        """`unread`: rows and positions of the tokens to read first, among them, at `ends`, each member's newest, which stands at `at` of
        `rows`. A member guesses at most `wanted` tokens, none with a chance below `least`; they are written into its row's tokens."""
        count, most = len(rows), int(wanted.max())
        ids, chances = np.zeros((count, most), np.int32), np.zeros((count, most), np.float32)
        made = np.zeros(count, np.int64)
        asked = [each.ctypes.data for each in (ends, rows, at, wanted)]
        read = (unread[0].ctypes.data, unread[1].ctypes.data, len(unread[0]))
        found = (ids.ctypes.data, chances.ctypes.data, made.ctypes.data)
        self._call(self._model.ctypes.data, self._eps, self._scale, *read, *asked, count, most, least, *found)
        return Guesses(ids, chances, made)


def native_drafting(model: ForwardPass, caches: list[Tensor], tokens: Tensor, tables: Tensor, block_size: int) -> NativeDrafting | None:
    """`caches` of each layer; `tokens` [rows, columns] and `tables` [rows, pages] int32 of the engine's rows. None: something of it is
    another form (a GPU, another architecture, float32, a gated bias)."""
    if not isinstance(model, Llama) or type(model.operators) is not NativeOperators:
        return None
    c, operators = model.config, model.operators
    linears = [model.head, *(each for layer in model.layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down))]
    fits = all(isinstance(each.product, NativeProduct) for each in linears) and all(layer.gate_up.bias is None for layer in model.layers)
    heads = operators.attends(c.heads, c.kv_heads, c.head_dim) and c.head_dim % 32 == 0
    plain = all(cache.dtype == torch.bfloat16 for cache in caches)
    return NativeDrafting(model, operators, caches, tokens, tables, block_size) if fits and heads and plain else None


def _pointers(layer: LlamaLayer) -> list[int]:
    """The weights, in the order of the struct."""
    norms = layer.head_norms or (None, None)
    parts = (layer.attention_norm, layer.mlp_norm, *norms, _packed(layer.qkv), layer.qkv.bias, _packed(layer.out), layer.out.bias)
    parts += (_packed(layer.gate_up), _packed(layer.down), layer.down.bias)
    return [0 if each is None else each.data_ptr() for each in parts]


def _packed(linear: Linear) -> Tensor:
    assert isinstance(linear.product, NativeProduct)
    return linear.product.packed
