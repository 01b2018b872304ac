"""What differs between servers of OpenAI's HTTP API: where their metrics are, how errors look, which fields they take. Pure; no network.

`Dialect` is one kind of server; vllm.py, tgi.py and trtllm.py are the three. Called by the link and the streams of openai_http.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.backends.sse import OPENAIS, Manners
from pagoda_router.errors import BadRequest, ContextTooLong, LacksEndpoint, UpstreamFailed
from pagoda_router.relays import Relay

LONGEST_MESSAGE_CHARS = 2000
ROUTERS_OWN = frozenset({"model", "priority", "cache_salt", "stream_interval"})
"""Fields that the router reads or writes itself: its queue has the priority, no client chooses another one's salt, and a stream that breaks
off is billed by its events, each of which has to be a token."""
_NO_SUCH_PATH = frozenset({"", "not found", "method not allowed"})
"""What a web server says itself, in FastAPI's words and axum's, where its application would say what was not found."""
_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a server told of itself; None: it does not tell."""

    running: int = 0
    """Requests."""
    waiting: int = 0
    kv_used: float | None = None
    """Of its KV cache, from 0 to 1."""
    capacity_tokens: int | None = None
    block_size: int | None = None
    max_running: int | None = None


class Dialect(Protocol):
    @property
    def name(self) -> str:
        """As in spec.engine.backend."""
        ...

    @property
    def load_paths(self) -> tuple[str, ...]:
        """Asked in turn at each look; what `load` reads."""
        ...

    manners: ClassVar[Manners] = OPENAIS

    def load(self, path: str, body: bytes, before: Load) -> Load:
        """`before` with what this answer tells. Raises ValueError when it is not what it should be."""
        ...

    def request(self, relay: Relay, model: str, salt: str) -> bytes:
        """The body to send. `model`: what the server calls it; `salt`: keeps its prefix cache apart where the server can, or empty.

        Raises BadRequest for what this kind of server cannot do.
        """
        ...

    def failure(self, status: int, body: bytes) -> RefusedByWorker | UpstreamFailed:
        """Of an answer that is not 200. Its `error`, or it itself, is what the client gets; other refusals are worth another worker."""
        ...

    def failure_in_stream(self, event: bytes) -> RefusedByWorker | UpstreamFailed:
        """The same of an error event, which comes with status 200. A refusal counts before the first output only."""
        return UpstreamFailed(told(event)[0])

    def tells_of_a_dead_engine(self, body: bytes) -> bool:
        """Of an error that is no refusal: what it came of takes every other request of that server with it."""
        return False


def request_fields(relay: Relay, model: str) -> dict[str, msgspec.Raw]:
    """What all of them get: the client's own fields, the server's name of the model, and usage at the end of a stream."""
    fields = {name: msgspec.Raw(value) for name, value in relay.fields.items() if name not in ROUTERS_OWN}
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    if relay.stream:
        given = relay.fields.get("stream_options")
        options: dict[str, Any] = (msgspec.json.decode(given) if given is not None else None) or {}
        if not relay.wants_usage:
            options.pop("continuous_usage_stats", None)
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
    return fields


def without_nulls(fields: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """OpenAI's clients may write null for what they do not say; strictly typed servers refuse it."""
    return {name: value for name, value in fields.items() if bytes(value) != b"null"}


def samples(text: bytes, names: tuple[str, ...]) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """Of a Prometheus page: name → labels and value of each sample. Of these metrics, and of those whose names begin so: a page has
    hundreds of lines, and is looked at every second for each worker. Raises ValueError."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for line in text.decode().splitlines():
        if line.startswith(names) and (parts := _SAMPLE.match(line)) is not None:
            name, labels, value = parts.groups("")
            found.setdefault(name, []).append((dict(_LABEL.findall(labels)), float(value)))
    return found


def total(found: Mapping[str, list[tuple[Mapping[str, str], float]]], name: str) -> int | None:
    """Of a gauge over all its labels: servers with several engines tell one of each."""
    return int(sum(value for _, value in found[name])) if name in found else None


def told(body: bytes) -> tuple[str, str | None]:
    """Message and field of an error in any of the shapes that are about: OpenAI's, vLLM's older flat one, TGI's, FastAPI's, plain text."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:LONGEST_MESSAGE_CHARS].decode(errors="replace").strip(), None
    if not isinstance(document, dict):
        return str(document)[:LONGEST_MESSAGE_CHARS], None
    error = document.get("error")
    inner = error if isinstance(error, dict) else document
    message = inner.get("message") or (error if isinstance(error, str) else None) or inner.get("detail") or "it gave no reason"
    param = inner.get("param")
    text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
    return text[:LONGEST_MESSAGE_CHARS], param.removeprefix("body.") if isinstance(param, str) else None


def failure_of(backend: str, status: int, body: bytes, too_long: re.Pattern[str]) -> RefusedByWorker | UpstreamFailed:
    """By the status's meaning, which all of them share. `too_long`: how this server says that a prompt exceeds its context."""
    message, param = told(body)
    if status in (400, 413, 422):
        kind = ContextTooLong if too_long.search(message) else BadRequest
        return RefusedByWorker(message, kind(message, param=param))
    if status == 429:
        return RefusedByWorker(message, overloaded=True)
    if status in (502, 503, 504):
        return RefusedByWorker(f"{backend} answered {status}: {message}")
    if status in (401, 403, 404, 405, 501):
        is_missing = status == 501 or (status in (404, 405) and message.lower() in _NO_SUCH_PATH)
        kind_of_failure = LacksEndpoint if is_missing else UpstreamFailed
        return RefusedByWorker(message, kind_of_failure(f"the {backend} worker refuses what the router sends ({status}): {message}"))
    return UpstreamFailed(f"the {backend} worker failed ({status}): {message}")
