"""A profile of functions → seconds of each stage of a request's way. Pure: what `under_profile.py` wrote goes in, a table comes out."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "HTTP server",
        (
            "/uvicorn/",
            "/httptools/",
            "/h11/",
            "/starlette/",
            "pagoda_router/http/asgi.py",
            "pagoda_router/http/direct.py",
            "pagoda_router/http/listeners.py",
        ),
    ),
    (
        "checking the request",
        ("openai/schemas.py", "openai/fields.py", "openai/checks.py", "openai/prepare.py", "openai/features.py", "/msgspec/"),
    ),
    (
        "template and tokens in",
        (
            "pagoda_router/text/chat.py",
            "pagoda_router/text/chunks.py",
            "pagoda_router/text/encoders.py",
            "pagoda_router/text/forms.py",
            "pagoda_router/beginnings.py",
            "/jinja2/",
        ),
    ),
    ("tokens to text", ("pagoda_router/text/tokens.py", "openai/sequence.py", "pagoda_router/text/stop.py", "/tokenizers/")),
    ("writing events", ("openai/formats.py", "openai/answers.py", "openai/keepalive.py", "openai/run.py")),
    (
        "surface",
        (
            "pagoda_router/http/",
            "pagoda_router/keys/",
            "pagoda_router/usage/",
            "pagoda_router/database/",
            "pagoda_router/abilities.py",
            "pagoda_router/relays.py",
            "openai/",
        ),
    ),
    (
        "admission and placement",
        (
            "pagoda_router/dispatch/",
            "pagoda_router/admission/",
            "pagoda_router/drafting/",
            "pagoda_router/placement/",
            "pagoda_router/fleet.py",
            "pagoda_router/fleet_texts.py",
            "pagoda_router/fleet_adapters.py",
            "pagoda_router/adapters.py",
            "pagoda_router/generation.py",
            "pagoda_router/catalog.py",
            "pagoda_router/token_ids.py",
        ),
    ),
    ("session with the worker", ("pagoda_router/backends/", "pagoda_router/wire/", "/grpc/", "/google/protobuf/")),
    ("tracing", ("pagoda_router/tracing/", "/opentelemetry/")),
    (
        "metrics",
        (
            "pagoda_router/metrics/",
            "pagoda_router/objectives.py",
            "/prometheus_client/",
        ),
    ),
    ("event loop in Python", ("/asyncio/", "/uvloop/", "/contextlib.py", "<frozen")),
)
"""The first that a file's path contains decides."""
OTHER = "other"
IN_C = "event loop, sockets, gRPC in C"
"""What has no Python function: whatever runs between the callbacks of the main thread, and in other threads."""


def stage_of(file: str) -> str:
    for stage, parts in STAGES:
        if any(part in file for part in parts):
            return stage
    return OTHER


def stage_seconds(profile: Mapping[str, Any], plain_s: float) -> dict[str, float]:
    """CPU seconds of each stage: of Python functions, of the C functions they call (sending bytes belongs to the one who sends), and of
    what no Python function has.

    `plain_s` is the CPU time of the same work without a profiler. What the work took longer under it is spread evenly over all calls, half
    each to caller and called, and taken off.
    """
    functions = profile["functions"]
    calls = sum(function["calls"] for function in functions)
    half = max(profile["process_s"] - plain_s, 0.0) / max(calls, 1) / 2
    seconds: defaultdict[str, float] = defaultdict(float)
    seconds[IN_C] = profile["process_s"] - sum(function["own_s"] for function in functions)
    for function in functions:
        known = 0
        for file, _, _, times, own_s in function["callers"]:
            known += times
            seconds[stage_of(file)] -= half * times
            if function["file"] == "~":
                seconds[stage_of(file)] += own_s - half * times
        if function["file"] != "~":
            seconds[stage_of(function["file"])] += function["own_s"] - half * function["calls"]
        elif not known:
            seconds[OTHER] += function["own_s"] - half * function["calls"]
        seconds[IN_C] -= half * (function["calls"] - known)
    return {stage: max(value, 0.0) for stage, value in seconds.items()}
