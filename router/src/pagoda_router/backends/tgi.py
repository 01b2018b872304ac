"""Text Generation Inference 2.4 to 3.3: Prometheus metrics and /info, errors as {"error", "error_type"}. Pure; used by openai_http.py.

NOTE: it ignores fields that it does not know. Of OpenAI's newer name for the output limit it is told in its own word.
"""

import re
from dataclasses import replace

import msgspec

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.backends.dialect import Dialect, Load, failure_of, request_fields, samples, total
from pagoda_router.errors import BadRequest, UpstreamFailed
from pagoda_router.relays import Relay

_TOO_LONG = re.compile(r"`inputs` (tokens \+ `max_new_tokens` must be|must have less than)")


class Tgi(Dialect):
    name = "tgi"
    load_paths = ("/info", "/metrics")

    def load(self, path: str, body: bytes, before: Load) -> Load:
        if path == "/info":
            return _info(body, before)
        found = samples(body)
        queue = total(found, "tgi_queue_size")
        if queue is None and "tgi_request_count" not in found and b"tgi_" not in body:
            raise ValueError("its metrics name no tgi_queue_size")
        batch_tokens = total(found, "tgi_batch_current_max_tokens")
        used = batch_tokens / before.capacity_tokens if batch_tokens is not None and before.capacity_tokens else None
        running = total(found, "tgi_batch_current_size") or 0
        return replace(before, running=running, waiting=queue or 0, kv_used=None if used is None else min(1.0, used))

    def request(self, relay: Relay, model: str, salt: str) -> bytes:
        if not relay.prefix_cache:
            raise BadRequest(
                "X-Pagoda-Features: a tgi worker cannot leave its prefix cache aside for one request", param="X-Pagoda-Features"
            )
        if relay.fields.get("n") not in (None, b"1", b"null"):
            raise BadRequest("n: a tgi worker gives one choice: leave it out, or send several requests", param="n")
        fields = request_fields(relay, model)
        limit = fields.pop("max_completion_tokens", None)
        if limit is not None:
            fields["max_tokens"] = limit
        return msgspec.json.encode(fields)

    def failure(self, status: int, body: bytes) -> RefusedByWorker | UpstreamFailed:
        return failure_of(self.name, status, body, _TOO_LONG)


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
