"""A model's blocks, one after another: each is read, its linears are quantized by what goes into them, and it is handed out and forgotten.

Memory holds one block, the second moments of its inputs, and the hidden states of the calibration text. What goes into a linear comes
through all that was quantized before it, as it will when the model is served. Called by run.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pagoda_worker.layers.rotary import RotaryTable
from pagoda_worker.models.files import Tensors
from pagoda_worker.models.llama_config import LlamaConfig
from pagoda_worker.offline.quantize.block import LINEARS, Block
from pagoda_worker.offline.quantize.folding import fold
from pagoda_worker.quantization.awq import factors
from pagoda_worker.quantization.gptq import gptq
from pagoda_worker.quantization.grid import Recipe, nearest
from pagoda_worker.quantization.sparsity import half_lost
from pagoda_worker.quantization.statistics import InputStatistics, output_error
from pagoda_worker.quantization.weights import QuantizedWeight

Method = Literal["rtn", "gptq", "awq"]
ATTENTION, OUT, MLP, DOWN = LINEARS[:3], LINEARS[3:4], LINEARS[4:6], LINEARS[6:]
"""Linears that share their inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    recipe: Recipe
    method: Method
    act_order: bool
    """Of GPTQ."""
    sparse: bool
    """2:4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedBlock:
    """Names are within the block."""

    weights: dict[str, QuantizedWeight]
    plain: dict[str, Tensor]
    """Float32: norms and biases, which AWQ changes."""
    errors: dict[str, float]
    """Of each linear's outputs: the mean squared error as a share of their mean square. Empty without calibration."""


Told = Callable[[int, str], None]
"""(block, linear), when it is done."""


def quantized_blocks(
    config: LlamaConfig, tensors: Tensors, hidden: list[Tensor] | None, rotary: RotaryTable, work: Work, told: Told
) -> Iterator[QuantizedBlock]:
    """`hidden`: batches of [B, S, E] float32 as the embedding has them, which are changed; None: nothing to calibrate with, as round to
    nearest can do without. Raises ModelError."""
    device = rotary.cos.device
    for index in range(config.layers):
        # No name holds a block: it would still be there while the next one is read.
        yield _Quantizing(Block.read(config, index, tensors, rotary, device), work, partial(told, index)).block(hidden)


class _Quantizing:
    """One block."""

    def __init__(self, block: Block, work: Work, done: Callable[[str], None]) -> None:
        self._block, self._work, self._done = block, work, done
        self._weights: dict[str, QuantizedWeight] = {}
        self._errors: dict[str, float] = {}

    def block(self, hidden: list[Tensor] | None) -> QuantizedBlock:
        if hidden is None:
            self._quantize(LINEARS, None)
        else:
            if self._work.method == "awq":
                self._fold([each.clone() for each in hidden])
            self._forward(hidden, self._quantize)
        plain = {name: tensor for name, tensor in self._block.tensors.items() if name.removesuffix(".weight") not in LINEARS}
        return QuantizedBlock(weights=self._weights, plain=plain, errors=self._errors)

    def _forward(self, hidden: list[Tensor], at: Callable[[tuple[str, ...], InputStatistics], None]) -> None:
        """`at` each place learns what goes into its linears, and may change them before they are used."""
        block, inner = self._block, self._block.config.heads * self._block.config.head_dim
        attended: list[Tensor] = []
        at(ATTENTION, self._seen(hidden, block.config.hidden, lambda h: block.norm(h, "input_layernorm")))
        attended += [block.attended(block.norm(h, "input_layernorm")) for h in hidden]
        at(OUT, self._seen(attended, inner, lambda a: a))
        for h in hidden:
            h += block.linear(attended.pop(0), "self_attn.o_proj")
        at(MLP, self._seen(hidden, block.config.hidden, lambda h: block.norm(h, "post_attention_layernorm")))

        def into_down(h: Tensor) -> Tensor:
            return block.gated(block.norm(h, "post_attention_layernorm"))

        at(DOWN, self._seen(hidden, block.config.intermediate, into_down))
        for h in hidden:
            h += block.linear(into_down(h), "mlp.down_proj")

    def _seen(self, batches: list[Tensor], inputs: int, make: Callable[[Tensor], Tensor]) -> InputStatistics:
        statistics = InputStatistics(inputs, batches[0].device)
        for batch in batches:
            statistics.add(make(batch))
        return statistics

    def _fold(self, hidden: list[Tensor]) -> None:
        seen: dict[str, InputStatistics] = {}
        self._forward(hidden, lambda names, statistics: seen.update({names[0]: statistics}))

        def choose(weights: list[Tensor], name: str, shared: Callable[[Tensor], Tensor]) -> Tensor:
            return factors(weights, seen[name].hessian, shared(seen[name].sizes), self._work.recipe)

        fold(self._block, choose, self._work.recipe.scale_dtype)

    def _quantize(self, names: tuple[str, ...], statistics: InputStatistics | None) -> None:
        for name in names:
            weight = self._block.tensors[f"{name}.weight"]
            self._weights[name] = quantized = self._one(weight, statistics)
            if statistics is None:
                del self._block.tensors[f"{name}.weight"]  # nothing goes through it
            else:
                self._block.tensors[f"{name}.weight"] = meaning = quantized.dequantized(torch.float32)
                self._errors[name] = output_error(weight, meaning, statistics.hessian)
            self._done(name)

    def _one(self, weight: Tensor, statistics: InputStatistics | None) -> QuantizedWeight:
        work = self._work
        if work.method == "gptq":
            assert statistics is not None, "GPTQ is calibrated"
            return gptq(weight, statistics.hessian, work.recipe, act_order=work.act_order, sparse=work.sparse)
        if work.sparse:
            weight = half_lost(weight, None if statistics is None else statistics.sizes)
        return nearest(weight, work.recipe)
