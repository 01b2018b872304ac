"""One block of a Llama relative in float32, taken apart where a linear's inputs can be seen. Whole sequences, no cache.

Its weights are read one block at a time and may be changed between the steps. Called by walk.py; tested beside transformers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.layers.norm import rms_norm
from pagoda_worker.layers.rotary import RotaryTable, rotate
from pagoda_worker.models.files import Tensors
from pagoda_worker.models.llama_config import LlamaConfig

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""In the order of the forward pass."""


@dataclass(slots=True)
class Block:
    config: LlamaConfig
    window: int | None
    rotary: RotaryTable
    tensors: dict[str, Tensor]
    """Float32, by their names within the block."""

    @classmethod
    def read(cls, config: LlamaConfig, index: int, tensors: Tensors, rotary: RotaryTable, device: torch.device) -> "Block":
        """Raises ModelError."""
        prefix, found = f"model.layers.{index}.", {}
        for name in tensors.stored:
            if name.startswith(prefix) and not name.endswith(".rotary_emb.inv_freq"):
                tensor = tensors.read(name)
                found[name.removeprefix(prefix)] = tensor.to(device, torch.float32, copy=True)
                tensors.give_back(tensor)
        return cls(config, config.windows[index], rotary, found)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(x, self.tensors[f"{name}.weight"], self.config.eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def attended(self, x: Tensor) -> Tensor:
        """x [B, S, E], normed → what goes into o_proj [B, S, H * D]."""
        c, (batch, length, _) = self.config, x.shape
        q, k, v = (self.linear(x, f"self_attn.{each}_proj").view(batch * length, -1, c.head_dim) for each in "qkv")
        if c.qk_norm:
            q, k = self.norm(q, "self_attn.q_norm"), self.norm(k, "self_attn.k_norm")
        cos, sin = (each[:length].repeat(batch, 1).unsqueeze(1) for each in (self.rotary.cos, self.rotary.sin))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (each.view(batch, length, -1, c.head_dim).transpose(1, 2) for each in (q, k, v))
        mask = None if self.window is None else _window_mask(length, self.window, x.device)
        heads = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
        return heads.transpose(1, 2).reshape(batch, length, -1)

    def gated(self, x: Tensor) -> Tensor:
        """x [B, S, E], normed → what goes into down_proj [B, S, I]."""
        return F.silu(self.linear(x, "mlp.gate_proj")) * self.linear(x, "mlp.up_proj")


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """[S, S]: a query sees itself and the window - 1 tokens before it."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)
