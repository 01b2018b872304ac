"""config.json of Llama and its relatives → one LlamaConfig. A relative is a parser: what is fixed, what is a field, what is refused.

Defaults are those that transformers takes when a field is missing. Called by llama.py; holds no tensors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pagoda_worker.errors import ModelError
from pagoda_worker.layers.parallel import HeadShare, columns_of_rank, rows_of_rank
from pagoda_worker.models.base import CacheShape, Footprint
from pagoda_worker.models.config_fields import ConfigFields

SLIDING_WINDOW = 4096
"""What transformers assumes for Mistral and Qwen when the field is missing; null says that there is none."""
MAX_WINDOW_LAYERS = 28
QWEN3_HEAD_DIM = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    max_position: int
    tied: bool
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """Each head's query and key are normed before they are rotated; all heads of a layer share the weights."""
    windows: tuple[int | None, ...]
    """Of each layer: a query sees itself and the window - 1 tokens before it. None: all."""
    rope: dict[str, Any]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "LlamaConfig":
        """Raises ModelError for what is missing, UnsupportedModel for what the engine would compute wrongly."""
        fields = ConfigFields(raw)
        return PARSERS[fields.architecture](fields)

    def of_rank(self, ranks: int) -> "LlamaConfig":
        """What each rank of a tensor parallel engine computes. Raises ConfigError when it cannot be divided."""
        share = HeadShare.of(self.heads, self.kv_heads, ranks)
        return replace(self, heads=share.queries, kv_heads=share.keys, intermediate=columns_of_rank(self.intermediate, ranks))

    def footprint(self, ranks: int = 1) -> Footprint:
        """Of one rank."""
        c = self.of_rank(ranks)
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        biases = c.qkv_bias * (q + 2 * kv) + c.out_bias * c.hidden + c.mlp_bias * (2 * c.intermediate + c.hidden)
        norms = 2 * c.hidden + c.qk_norm * 2 * c.head_dim
        products = c.hidden * (2 * q + 2 * kv + 3 * c.intermediate)
        layer = products + biases + norms
        head = c.hidden * rows_of_rank(c.vocab, ranks)
        return Footprint(
            cache=CacheShape(layers=c.layers, kv_heads=c.kv_heads, head_dim=c.head_dim),
            parameters=c.layers * layer + c.hidden + head * (1 if c.tied else 2),
            per_step_token=4 * c.hidden + 2 * q + 2 * kv + 3 * c.intermediate,
            vocab=self.vocab,
            max_position=self.max_position,
            linear_parameters=c.layers * products,
            head_parameters=0 if c.tied else head,
            tied_head_parameters=head if c.tied else 0,
            per_adapter_rank=c.layers * (7 * c.hidden + 2 * q + 2 * kv + 3 * c.intermediate),
        )


def _llama(fields: ConfigFields) -> LlamaConfig:
    fields.only("pretraining_tp", 1)
    bias = fields.flag("attention_bias")
    return _family(fields, qkv_bias=bias, out_bias=bias, mlp_bias=fields.flag("mlp_bias"))


def _mistral(fields: ConfigFields) -> LlamaConfig:
    fields.only("layer_types")
    return _family(fields, windows=(_window(fields),) * fields.integer("num_hidden_layers"))


def _qwen2(fields: ConfigFields) -> LlamaConfig:
    return _family(fields, qkv_bias=True, windows=_qwen_windows(fields))


def _qwen3(fields: ConfigFields) -> LlamaConfig:
    bias = fields.flag("attention_bias")
    return _family(fields, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=QWEN3_HEAD_DIM, windows=_qwen_windows(fields))


PARSERS: dict[str, Callable[[ConfigFields], LlamaConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _family(
    fields: ConfigFields,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    head_dim: int | None = None,
    windows: tuple[int | None, ...] | None = None,
) -> LlamaConfig:
    """What all have in common. `head_dim`: where the field is missing; None: hidden / heads."""
    fields.only("hidden_act", "silu")
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers, max_position = fields.integer("num_hidden_layers"), fields.integer("max_position_embeddings")
    config = LlamaConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", head_dim or hidden // heads),
        intermediate=fields.integer("intermediate_size"),
        vocab=fields.integer("vocab_size"),
        eps=fields.number("rms_norm_eps", 1e-6),
        max_position=max_position,
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        windows=tuple(None if w is None or w >= max_position else w for w in windows or (None,) * layers),
        rope=_rope(fields),
    )
    if config.heads % config.kv_heads:
        raise ModelError(f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {config.kv_heads}")
    if config.head_dim % 2:
        raise ModelError(f"config.json: head_dim {config.head_dim} is odd; rotary embedding needs pairs")
    return config


def _window(fields: ConfigFields) -> int | None:
    if fields.raw.get("sliding_window", SLIDING_WINDOW) is None:
        return None
    return fields.integer("sliding_window", SLIDING_WINDOW)


def _qwen_windows(fields: ConfigFields) -> tuple[int | None, ...]:
    """layer_types says it by layer; before transformers 4.53 the layers from max_window_layers on have the window."""
    layers = fields.integer("num_hidden_layers")
    window = _window(fields) if fields.flag("use_sliding_window") else None
    types = fields.raw.get("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", MAX_WINDOW_LAYERS, least=0)
        return tuple(window if i >= first else None for i in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise ModelError(f"config.json: layer_types must have one entry for each of the {layers} layers, it is {types!r}")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.unsupported(f"{kind!r} in layer_types", "'full_attention' or 'sliding_attention'")
    if window is None and "sliding_attention" in types:
        raise ModelError("config.json: layer_types has sliding_attention, use_sliding_window and sliding_window give no window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def _rope(fields: ConfigFields) -> dict[str, Any]:
    """transformers 5 writes rope_parameters; before, rope_theta and rope_scaling (whose key was once `type`)."""
    raw = fields.raw
    parameters = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise fields.unsupported(f"rope_parameters by kind of layer ({', '.join(parameters)})", "one for all layers")
    kind = parameters.pop("type", "default")
    parameters.setdefault("rope_type", kind)
    if parameters.get("rope_theta") is None:
        parameters["rope_theta"] = raw.get("rope_theta") or 10_000.0
    partial = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise fields.unsupported(f"partial_rotary_factor {partial!r}", "1.0")
    return parameters
