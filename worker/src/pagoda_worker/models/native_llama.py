"""A Llama as native/llama.h reads it, laid out once, and its steps: one native call in place of eight a layer.

Owns those numbers and what they point at. Called by execution/ at every step, and by native_drafting.py; what is of another form goes
operation by operation.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pagoda_worker.layers.adapters import AdapterSide
from pagoda_worker.layers.kv_cache import slot_count
from pagoda_worker.layers.linear import Linear
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.native_adapters import NativeSide
from pagoda_worker.layers.panels import Packed, PanelProduct, address, interleave
from pagoda_worker.models.base import ForwardPass
from pagoda_worker.models.llama import Llama, LlamaLayer

Int64 = npt.NDArray[np.int64]
_CACHE_FORMS = {torch.bfloat16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}
"""CacheForm of native/llama.h."""
NOTHING: Int64 = np.zeros((3, 0), np.int64)
"""No places, chunks or samplers."""
_HALF_VECTORS = 32
_VECTOR = 16


class NativeLlama:
    def __init__(
        self, model: Llama, operators: NativeOperators, caches: list[Tensor], tokens: Tensor, tables: Tensor, block_size: int
    ) -> None:
        """As `native_llama`."""
        c = self.config = model.config
        self.library = operators.library
        self.shape = (c.eps, c.head_dim**-0.5)
        """As every call wants it: of the norms, and of scores."""
        biases = [_gated_bias(layer.gate_up) for layer in model.layers]
        layers = [
            [*_numbers(layer, bias), cache.data_ptr(), window or 0]
            for layer, bias, cache, window in zip(model.layers, biases, caches, c.windows, strict=True)
        ]
        self._layers = np.array(layers, np.int64)
        rows_of_model = (model.embedding, model.norm, model.rotary.cos, model.rotary.sin)
        slots = slot_count(caches[0], block_size)
        sizes = (c.layers, c.hidden, c.intermediate, c.heads, c.kv_heads, c.head_dim, c.vocab, slots, block_size)
        self._model = np.array(
            [
                self._layers.ctypes.data,
                *map(address, rows_of_model),
                *_packed(model.head).numbers(None),
                _CACHE_FORMS[caches[0].dtype],
                *sizes,
                address(tokens),
                address(tables),
                tokens.shape[1],
                tables.shape[1],
            ],
            np.int64,
        )
        self.address: int = self._model.ctypes.data
        sides = [linear.adapters for layer in model.layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        self.adapts = all(side is None or _address(side) for side in sides)
        """Steps with adapters too: all their deltas are part of a product's call."""
        self._kept = (model, biases, caches, tokens, tables, sides)
        """Whose memory the numbers name."""
        self._step = self.library["step"]

    def step(self, places: Int64, chunks: Int64, samplers: Int64, adapters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Computes tokens: places [2, P] (row, position), each as a row that decodes, then chunks [3, C] (row, first position, count).
        samplers [3, N] (token, row, position): those behind which a token is sampled, ascending, and where that goes. adapters
        [T] int32: slots of all tokens, -1 where there is none. Returns logits [N, V] bf16 and the likeliest next ids [N] int64, -1 where a
        row's logits are not finite; they are written where they go, 0 in place of -1."""
        assert all(each.flags.c_contiguous for each in (places, chunks, samplers)), "read row by row"
        count = samplers.shape[1]
        logits, ids = torch.empty((count, self.config.vocab), dtype=torch.bfloat16), torch.empty(count, dtype=torch.int64)
        asked = [number for each in (places, chunks, samplers) for number in (each.ctypes.data, each.shape[1])]
        self._step(self.address, *self.shape, *asked, address(adapters), logits.data_ptr(), ids.data_ptr())
        return logits, ids

    def read(self, chunks: Int64) -> None:
        """Into the cache, and nothing else."""
        self.step(NOTHING, chunks, NOTHING)


def native_llama(model: ForwardPass, caches: list[Tensor], tokens: Tensor, tables: Tensor, block_size: int) -> NativeLlama | None:
    """`caches` of each layer; `tokens` [rows, columns] and `tables` [rows, pages] int32 of the engine's rows. None: something of it is
    another form (a GPU, another architecture or backend of attention, several ranks, compiled, float32, batch-invariant, weights of other
    sizes than whole steps)."""
    if not isinstance(model, Llama) or type(model.operators) is not NativeOperators or model.operators.collectives.size > 1:
        return None
    c, operators = model.config, model.operators
    linears = [model.head, *(each for layer in model.layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down))]
    fits = all(isinstance(each.product, PanelProduct) and each.product.packed is not None for each in linears)
    whole = operators.attends(c.heads, c.kv_heads, c.head_dim) and c.head_dim % _HALF_VECTORS == 0 and c.hidden % _VECTOR == 0
    plain = model.embedding.dtype == torch.bfloat16 and all(cache.dtype in _CACHE_FORMS for cache in caches)
    return NativeLlama(model, operators, caches, tokens, tables, block_size) if fits and whole and plain else None


def _numbers(layer: LlamaLayer, gated_bias: Tensor | None) -> list[int]:
    """`LlamaLayer` there, but for the cache and the window."""
    norms = (layer.attention_norm, layer.mlp_norm, *(layer.head_norms or (None, None)))
    weights = [(layer.qkv, layer.qkv.bias), (layer.out, layer.out.bias), (layer.gate_up, gated_bias), (layer.down, layer.down.bias)]
    return [
        *map(address, norms),
        *(number for linear, bias in weights for number in _packed(linear).numbers(bias, _address(linear.adapters))),
    ]


def _address(side: AdapterSide | None) -> int:
    """0 also where deltas are no part of a product's call."""
    return side.address if isinstance(side, NativeSide) else 0


def _gated_bias(linear: Linear) -> Tensor | None:
    return None if linear.bias is None else interleave(linear.bias)


def _packed(linear: Linear) -> Packed:
    assert isinstance(linear.product, PanelProduct)
    packed = linear.product.packed
    assert packed is not None
    return packed
