"""Text Generation Inference 2.4 to 3.3: Prometheus metrics and /info, errors as {"error", "error_type"}. Pure; used by openai_http.py.

NOTE: it ignores fields that it does not know, and refuses or misreads some of OpenAI's (`_in_its_words`). A stream's refusals come with
status 200 as its first event, and after an error event it still writes [DONE].
"""

import re
from dataclasses import replace

import msgspec

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.backends.dialect import Dialect, Load, failure_of, request_fields, samples, told, total, without_nulls
from pagoda_router.backends.forms import take_form
from pagoda_router.backends.sse import Manners
from pagoda_router.errors import BadRequest, UpstreamFailed
from pagoda_router.relays import Relay

_TOO_LONG = re.compile(r"`inputs` (tokens \+ `max_new_tokens` must be|must have less than)")
_GAUGES = ("tgi_queue_size", "tgi_batch_current_max_tokens", "tgi_batch_max_total_tokens", "tgi_batch_current_size")
_REFUSED = ("Input validation error", "Template error", "Missing template", "Tool error")
_ASKS_FOR_NOTHING = {"top_p": 1, "presence_penalty": 0}
"""It refuses the first, and makes a repetition penalty of 2 of the second."""


class Tgi(Dialect):
    name = "tgi"
    load_paths = ("/info", "/metrics")
    manners = Manners(
        finish_reasons={
            b'"finish_reason":"eos_token"': b'"finish_reason":"stop"',
            b'"finish_reason":"stop_sequence"': b'"finish_reason":"stop"',
            b'"finish_reason":""': b'"finish_reason":null',
        },
        usage_per_choice=True,
    )

    def load(self, path: str, body: bytes, before: Load) -> Load:
        if path == "/info":
            return _info(body, before)
        found = samples(body, _GAUGES)
        queue = total(found, "tgi_queue_size")
        if queue is None and b"tgi_" not in body:
            raise ValueError("its metrics name no tgi_queue_size")
        batch_tokens = total(found, "tgi_batch_current_max_tokens")
        capacity = total(found, "tgi_batch_max_total_tokens") or before.capacity_tokens  # 2.x has it in /info, 3.x here
        used = batch_tokens / capacity if batch_tokens is not None and capacity else None
        running = total(found, "tgi_batch_current_size") or 0
        kv_used = None if used is None else min(1.0, used)
        return replace(before, running=running, waiting=queue or 0, kv_used=kv_used, capacity_tokens=capacity)

    def request(self, relay: Relay, model: str, salt: str) -> bytes:
        if not relay.prefix_cache:
            raise BadRequest(
                "X-Pagoda-Features: a tgi worker cannot leave its prefix cache aside for one request", param="X-Pagoda-Features"
            )
        if relay.fields.get("n") not in (None, b"1", b"null"):
            raise BadRequest("n: a tgi worker gives one choice: leave it out, or send several requests", param="n")
        return msgspec.json.encode(_in_its_words(without_nulls(request_fields(relay, model))))

    def failure(self, status: int, body: bytes) -> RefusedByWorker | UpstreamFailed:
        return failure_of(self.name, status, body, _TOO_LONG)

    def failure_in_stream(self, event: bytes) -> RefusedByWorker | UpstreamFailed:
        """By its sentence: the status that the event names is 422 whatever it is."""
        message, _ = told(event)
        if message.startswith("Model is overloaded"):
            return self.failure(429, event)
        return self.failure(422 if message.startswith(_REFUSED) else 500, event)


def _in_its_words(fields: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    limit = fields.pop("max_completion_tokens", None)
    if limit is not None:
        fields["max_tokens"] = limit
    stop = bytes(fields.get("stop", b""))
    if stop.startswith(b'"'):
        fields["stop"] = msgspec.Raw(b"[" + stop + b"]")
    for name, nothing in _ASKS_FOR_NOTHING.items():
        if name in fields and _number(fields[name]) == nothing:
            del fields[name]
    if (form := take_form(fields)) is not None:
        if form.kind == "grammar":
            raise BadRequest(f"{form.field}: a tgi worker knows no grammars: ask for a schema or a regex", param=form.field)
        fields["response_format"] = msgspec.Raw(msgspec.json.encode({"type": form.kind, "value": form.value}))
    match msgspec.json.decode(fields.get("response_format", b"null")):
        case {"type": "text"}:
            del fields["response_format"]
        case {"type": "json_object", **rest} if "value" not in rest:  # it would refuse it
            fields["response_format"] = msgspec.Raw(b'{"type":"json","value":{"type":"object"}}')
        case {"type": "json_schema", "json_schema": schema}:
            fields["response_format"] = msgspec.Raw(msgspec.json.encode({"type": "json_schema", "value": schema}))
    return fields


def _number(value: msgspec.Raw) -> float | None:
    decoded = msgspec.json.decode(value)
    return decoded if isinstance(decoded, int | float) and not isinstance(decoded, bool) else None


def _info(body: bytes, before: Load) -> Load:
    info = msgspec.json.decode(body)
    if not isinstance(info, dict):
        raise ValueError("/info is not an object")
    capacity, most = info.get("max_batch_total_tokens"), info.get("max_concurrent_requests")
    return replace(
        before,
        capacity_tokens=capacity if isinstance(capacity, int) and capacity > 0 else before.capacity_tokens,
        max_running=most if isinstance(most, int) and most > 0 else before.max_running,
    )
