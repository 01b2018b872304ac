"""vLLM's server, 0.10 to 0.32: Prometheus metrics, OpenAI's error shape, unknown fields allowed. Pure; used by openai_http.py."""

import re
from dataclasses import replace

import msgspec

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.backends.dialect import Dialect, Load, failure_of, request_fields, samples, total
from pagoda_router.backends.forms import OLDER_SPELLING, STRUCTURED, older_spelling
from pagoda_router.errors import BadRequest, UpstreamFailed
from pagoda_router.relays import Relay

FEWEST_MAX_RUNNING = 256
"""What its default is on most devices."""
NO_CACHE_BLOCKS = 1
"""Of a model that keeps no keys and values, as encoders are: the block that stands for none is there, and says nothing of room."""
GROWTH = 4
"""A look adds at most a fourth, so that no more than that can be too many."""
_TOO_LONG = re.compile(r"maximum (context|model) length|longer than the maximum|max_model_len", re.IGNORECASE)
_GAUGES = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:cache_config_info"),
    *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),  # the latter is the older name
)
_DEAD_ENGINE = (b"EngineCore encountered an issue", b"EngineDeadError")


class Vllm(Dialect):
    name = "vllm"
    load_paths = ("/metrics",)

    def load(self, path: str, body: bytes, before: Load) -> Load:
        found = samples(body, _GAUGES)
        if "vllm:num_requests_running" not in found:
            raise ValueError("its metrics name no vllm:num_requests_running")
        use = found.get("vllm:kv_cache_usage_perc") or found.get("vllm:gpu_cache_usage_perc")
        capacity, block_size = before.capacity_tokens, before.block_size
        for labels, _ in found.get("vllm:cache_config_info", ()):
            blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
            if blocks.isdigit() and size.isdigit() and int(blocks) > NO_CACHE_BLOCKS and int(size):
                capacity, block_size = int(blocks) * int(size), int(size)
        running, waiting = total(found, "vllm:num_requests_running") or 0, total(found, "vllm:num_requests_waiting") or 0
        return replace(
            before,
            running=running,
            waiting=waiting,
            max_running=_most(running, waiting, before.max_running or FEWEST_MAX_RUNNING),
            kv_used=max(value for _, value in use) if use else None,
            capacity_tokens=capacity,
            block_size=block_size,
        )

    def request(self, relay: Relay, model: str, salt: str) -> bytes:
        fields = request_fields(relay, model)
        if salt:
            fields["cache_salt"] = msgspec.Raw(msgspec.json.encode(salt))
        _require_best_of(fields)
        _say_in_both_spellings(fields)
        return msgspec.json.encode(fields)

    def tells_of_a_dead_engine(self, body: bytes) -> bool:
        return any(words in body for words in _DEAD_ENGINE)

    def failure(self, status: int, body: bytes) -> RefusedByWorker | UpstreamFailed:
        return failure_of(self.name, status, body, _TOO_LONG)


def _most(running: int, waiting: int, most: int) -> int:
    """Requests it may have. It does not tell its --max-num-seqs, up to 1024 by default: as long as it runs all that it has got, more fit.
    Too many wait there and are seen at the next look, after which it gets none."""
    return most + most // GROWTH if waiting == 0 and running >= most - most // GROWTH else most


def _require_best_of(fields: dict[str, msgspec.Raw]) -> None:
    """It draws n choices whatever `best_of` says."""
    best_of, n = (bytes(fields.get(name, b"null")) for name in ("best_of", "n"))
    if best_of not in (b"null", n if n != b"null" else b"1"):
        raise BadRequest(f"best_of is {best_of[:40].decode()}: a vllm worker draws n choices and no more: leave it out", param="best_of")


def _say_in_both_spellings(fields: dict[str, msgspec.Raw]) -> None:
    """Each version reads the one that it knows: 0.12 and later ignore the older fields, and would answer in any form."""
    older = older_spelling(fields)
    if older:
        fields[STRUCTURED] = msgspec.Raw(msgspec.json.encode({OLDER_SPELLING[name]: fields[name] for name in older}))
