"""Makes a larger Llama of a trained one that says exactly the same, from which training goes on. Pure, but for the tensors.

Net2Net (Chen, Goodfellow and Shlens, https://arxiv.org/abs/1511.05641): a model need not begin at random when a smaller one has learned
the task. Every channel, head and neuron comes `width` times over, and what reads them gives each copy a random share of its old weight,
the shares adding up to one. So the function is the same, and the copies still have gradients of their own, or they would stay copies for
ever. Layers that are new write nothing yet: their output projections are zero, and learn first.
"""

from copy import deepcopy

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

_TILED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
"""What adds a layer's results to the residual stream."""


def grown(small: LlamaForCausalLM, *, width: int, depth: int, seed: int) -> LlamaForCausalLM:
    """A model with `width` times the channels, heads and neurons and `depth` times the layers of `small`, with its logits, in its dtype.

    Embeddings are tied in both, so the last norm takes back that a logit is a sum over `width` copies of every channel.
    """
    assert small.config.tie_word_embeddings
    rng = torch.Generator().manual_seed(seed)
    config = deepcopy(small.config)
    for name in _TILED:
        setattr(config, name, getattr(config, name) * width)
    config.num_hidden_layers *= depth
    large = LlamaForCausalLM(config).to(small.dtype)

    weights = {
        "model.embed_tokens.weight": small.model.embed_tokens.weight.repeat(1, width),
        "lm_head.weight": small.lm_head.weight.repeat(1, width),
        "model.norm.weight": small.model.norm.weight.repeat(width) / width,
    }
    for number, layer in enumerate(small.model.layers):
        for copy in range(depth):
            for name, weight in layer.named_parameters():
                made = weight.repeat(width) if weight.ndim == 1 else _widened(weight, width, rng)
                if copy > 0 and name in _WRITES:
                    made = torch.zeros_like(made)
                weights[f"model.layers.{number * depth + copy}.{name}"] = made
    large.load_state_dict(weights)
    return large


def _widened(weight: Tensor, width: int, rng: torch.Generator) -> Tensor:
    """[out, in] to [width * out, width * in]: every copy of an output splits its inputs' weights among their copies in its own way."""
    shares = torch.rand(width, width, *weight.shape, generator=rng) + 0.5  # of output copy, of input copy, [out, in]
    shares = shares / shares.sum(1, keepdim=True)
    return (shares * weight).permute(0, 2, 1, 3).reshape(width * weight.shape[0], width * weight.shape[1])
