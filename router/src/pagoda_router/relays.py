"""What the router's inside knows of workers that are other people's servers: their names, a request for one, bytes from one. Plain data.

generation.py has both records among its own; backends/ speaks to the servers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OWN_BACKEND = "pagoda"
BACKENDS = frozenset({OWN_BACKEND, "vllm", "tgi", "tensorrt-llm"})
"""Values of spec.engine.backend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A request that a foreign backend understands itself: its JSON goes there, and the answer's bytes come back."""

    path: str
    """Of the server's own, as /v1/chat/completions."""
    fields: Mapping[str, bytes]
    """The body's top level: name → JSON as the client wrote it."""
    served_name: str
    """What the answer calls the model, whatever the backend calls it."""
    stream: bool
    wants_usage: bool
    """The client asked for the stream's usage; the backend is always asked."""
    prefix_cache: bool = True
    """False: keys and values of earlier requests must not be used."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """Bytes of the answer to a Relay, ready for the client: whole events of a stream, or the whole body."""

    data: bytes
    tokens: int
    """Output tokens in it, as far as events tell; the usage in Ended is exact."""
    finish_reasons: tuple[str, ...] = ()
    """Of the choices that end in it."""
    sequence: int = 0


def backends_of(spec: Any) -> tuple[str, ...]:
    """Of a manifest's variants, in their order; a variant that names none has the model's own."""
    return _of_engines(spec, "backend", OWN_BACKEND)


def quantizations_of(spec: Any) -> tuple[str, ...]:
    """The same of what their weights are quantized to; "" where that is not declared. Empty: nowhere."""
    declared = _of_engines(spec, "quantization", "")
    return declared if any(declared) else ()


def _of_engines(spec: Any, field: str, default: str) -> tuple[str, ...]:
    usual = (spec.get("engine") or {}).get(field) or default
    return tuple(str((variant.get("engine") or {}).get(field) or usual) for variant in spec.get("variants") or [{}])
