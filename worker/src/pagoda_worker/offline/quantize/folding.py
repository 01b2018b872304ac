"""AWQ's factors folded into a block: the weights of an input times the factor, and what makes that input divided by it. Exact.

Four places where what makes the inputs is linear in something that can be scaled: a norm before q, k, v and before gate, up; v's outputs
before o, since attention only averages values; up's outputs before down. Called by walk.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pagoda_worker.offline.quantize.block import Block

Choose = Callable[[list[Tensor], str, Callable[[Tensor], Tensor]], Tensor]
"""(weights that share their inputs, the first one's name, how the inputs' sizes [in] are shared) → factors [in], shared alike."""


def fold(block: Block, choose: Choose, stored: torch.dtype) -> None:
    """`stored`: of norms in the checkpoint that is written; what is folded into a norm is what it has there."""
    _into_norm(block, "input_layernorm", [f"self_attn.{each}_proj" for each in "qkv"], choose, stored)
    _into_values(block, choose)
    _into_norm(block, "post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"], choose, stored)
    factors = choose([block.tensors["mlp.down_proj.weight"]], "mlp.down_proj", _each)
    _divide_outputs(block, "mlp.up_proj", factors)
    block.tensors["mlp.down_proj.weight"] *= factors


def _into_norm(block: Block, norm: str, linears: list[str], choose: Choose, stored: torch.dtype) -> None:
    weights = [block.tensors[f"{name}.weight"] for name in linears]
    old = block.tensors[f"{norm}.weight"]
    new = (old / choose(weights, linears[0], _each)).to(stored).float()
    kept = (new == 0) | ~torch.isfinite(new)  # nothing could undo those
    new = torch.where(kept, old, new)
    block.tensors[f"{norm}.weight"] = new
    for weight in weights:
        weight *= torch.where(kept, 1.0, old / new)


def _into_values(block: Block, choose: Choose) -> None:
    """Every query head of a group reads the same values: their inputs to o have the same factors."""
    c = block.config
    out = block.tensors["self_attn.o_proj.weight"]
    shape = (c.kv_heads, c.heads // c.kv_heads, c.head_dim)
    factors = choose([out], "self_attn.o_proj", lambda sizes: sizes.view(shape).mean(1, keepdim=True).expand(shape).reshape(-1))
    _divide_outputs(block, "self_attn.v_proj", factors.view(shape)[:, 0].flatten())
    out *= factors


def _each(sizes: Tensor) -> Tensor:
    return sizes


def _divide_outputs(block: Block, name: str, factors: Tensor) -> None:
    block.tensors[f"{name}.weight"] /= factors[:, None]
    if (bias := block.tensors.get(f"{name}.bias")) is not None:
        bias /= factors
