"""TensorRT-LLM's trtllm-serve, 1.0 to 1.3: statistics as JSON, flat errors, unknown fields forbidden. Pure; used by openai_http.py.

NOTE: /metrics hands out each iteration's statistics once, to whoever asks first, and none while nothing runs; without
enable_iter_perf_stats it is always empty. What it told last is then what is known, and the router's own count is the rest.
"""

import re
from dataclasses import replace
from typing import Any

import msgspec

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.backends.dialect import Dialect, Load, failure_of, request_fields, without_nulls
from pagoda_router.backends.forms import take_form
from pagoda_router.errors import BadRequest, UpstreamFailed
from pagoda_router.relays import Relay

_TOO_LONG = re.compile(r"max_seq_len|max_num_tokens|max_input_len|maximum (context|sequence|input) length", re.IGNORECASE)
_BOOKKEEPING = frozenset(
    {
        *("store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("prediction", "verbosity", "request_id", "session_id"),
    }
)
"""OpenAI's fields whose absence changes no answer: it would refuse the whole request for them."""
_STREAM_OPTIONS = ("include_usage", "continuous_usage_stats")
"""All that it knows. 1.0 to 1.2 take the second as true where it is left out, and write usage into every event."""
_FORMS = {"json": ("json", "schema"), "regex": ("regex", "regex"), "grammar": ("ebnf", "ebnf")}
CHAT_PATH = "/v1/chat/completions"


class TensorRtLlm(Dialect):
    name = "tensorrt-llm"
    load_paths = ("/metrics",)

    def load(self, path: str, body: bytes, before: Load) -> Load:
        told = msgspec.json.decode(body)
        if not isinstance(told, list):
            raise ValueError("/metrics is not a list of iterations")
        if not told:
            return replace(before, running=0, waiting=0, kv_used=None)  # nothing ran since the last look
        return _iteration(told[-1], before)

    def request(self, relay: Relay, model: str, salt: str) -> bytes:
        fields = without_nulls(request_fields(relay, model))
        for name in _BOOKKEEPING:
            fields.pop(name, None)
        if salt and relay.path != CHAT_PATH:
            raise BadRequest(
                "X-Pagoda-Features: a tensorrt-llm worker can leave its prefix cache aside for a chat only", param="X-Pagoda-Features"
            )
        if salt:
            fields["cache_salt"] = msgspec.Raw(msgspec.json.encode(salt))
        if "stream_options" in fields:
            options = msgspec.json.decode(fields["stream_options"])
            fields["stream_options"] = msgspec.Raw(msgspec.json.encode({name: options.get(name, False) for name in _STREAM_OPTIONS}))
        if bytes(fields.get("top_k", b"")) == b"-1":
            del fields["top_k"]  # off, in vLLM's word; some versions die of it
        if b'"reasoning' in bytes(fields.get("messages", b"")):
            fields["messages"] = _without_thoughts(fields["messages"])
        if (form := take_form(fields)) is not None:
            kind, member = _FORMS[form.kind]
            fields["response_format"] = msgspec.Raw(msgspec.json.encode({"type": kind, member: form.value}))
        match msgspec.json.decode(fields.get("response_format", b"null")):
            case {"type": "json_schema", "json_schema": {"schema": schema}}:  # OpenAI's form is 1.3's; this one all versions know
                fields["response_format"] = msgspec.Raw(msgspec.json.encode({"type": "json", "schema": schema}))
        return msgspec.json.encode(fields)

    def failure(self, status: int, body: bytes) -> RefusedByWorker | UpstreamFailed:
        return failure_of(self.name, status, body, _TOO_LONG)


def _without_thoughts(messages: msgspec.Raw) -> msgspec.Raw:
    """Of earlier answers, which it writes and does not read: it would refuse the request for them."""
    said = msgspec.json.decode(messages)
    if not isinstance(said, list):
        return messages
    for message in said:
        if isinstance(message, dict):
            message.pop("reasoning_content", None)
            message.pop("reasoning", None)
    return msgspec.Raw(msgspec.json.encode(said))


def _iteration(last: Any, before: Load) -> Load:
    if not isinstance(last, dict):
        raise ValueError("an iteration in /metrics is not an object")
    cache = last.get("kvCacheStats") or {}
    blocks, used, size = (_whole(cache.get(name)) for name in ("maxNumBlocks", "usedNumBlocks", "tokensPerBlock"))
    batch = last.get("inflightBatchingStats") or {}
    running = _whole(last.get("numActiveRequests"))
    if running is None:
        running = _whole(batch.get("numScheduledRequests"))
    return replace(
        before,
        running=running or 0,
        waiting=_whole(last.get("numQueuedRequests")) or 0,
        kv_used=used / blocks if blocks and used is not None else None,
        capacity_tokens=blocks * size if blocks and size else before.capacity_tokens,
        block_size=size or before.block_size,
        max_running=_whole(last.get("maxNumActiveRequests")) or before.max_running,
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
