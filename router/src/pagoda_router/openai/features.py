"""What headers ask of one request: `X-Pagoda-Features: variant=NAME`, `X-Pagoda-Class: throughput`, `X-Pagoda-Trace: 1`,
`X-Pagoda-Deadline-Ms: 1500`. Pure; app.py calls it before the body is read.

Read strictly: a toggle that would be ignored makes two measurements look alike that are not, so everything else is refused.
"""

import re

from pagoda_router.asgi import Headers
from pagoda_router.errors import BadRequest
from pagoda_router.generation import RequestClass

FEATURES = b"x-pagoda-features"
NOT_AVAILABLE = frozenset({"speculation", "prefix-cache", "batching"})
ALIASES = {b"x-pagoda-speculation": "X-Pagoda-Speculation", b"x-backend": "X-Backend"}
PARAM = "X-Pagoda-Features"
TRACE = b"x-pagoda-trace"
CLASS = b"x-pagoda-class"
DEADLINE = b"x-pagoda-deadline-ms"
LONGEST_DEADLINE_MS = 86_400_000


def variant_of(headers: Headers) -> str | None:
    """The variant that the client insists on. Raises BadRequest."""
    given: list[str] = []
    for name, value in headers:
        if name == FEATURES:
            given.append(value.decode("latin-1"))
        elif name in ALIASES:
            raise BadRequest(f"{ALIASES[name]} is not available yet: leave it out", param=ALIASES[name])
    return _variant(",".join(given)) if given else None


def class_of(headers: Headers, allowed: RequestClass) -> RequestClass:
    """The request's class: a header may lower what its key allows, and asking for more than that changes nothing. Raises BadRequest."""
    lowest, classes = allowed, list(RequestClass)
    for name, value in headers:
        if name != CLASS:
            continue
        text = value.decode("latin-1").strip().lower()
        if text not in classes:
            raise BadRequest(f"X-Pagoda-Class: {text[:40]!r} is none of {', '.join(classes)}", param="X-Pagoda-Class")
        lowest = max(lowest, RequestClass(text), key=classes.index)
    return lowest


def deadline_s_of(headers: Headers) -> float | None:
    """How long the whole answer may take; of several the shortest. Raises BadRequest."""
    deadlines_ms: list[int] = []
    for name, value in headers:
        if name == DEADLINE:
            text = value.decode("latin-1").strip()
            if re.fullmatch(r"[0-9]{1,8}", text) is None or not 0 < int(text) <= LONGEST_DEADLINE_MS:
                raise BadRequest(
                    f"X-Pagoda-Deadline-Ms: {text[:40]!r} is no whole number of 1 to {LONGEST_DEADLINE_MS}", param="X-Pagoda-Deadline-Ms"
                )
            deadlines_ms.append(int(text))
    return min(deadlines_ms) / 1000 if deadlines_ms else None


def wants_trace(headers: Headers) -> bool:
    """The answer ends with the request's trace. Raises BadRequest."""
    given = [value for name, value in headers if name == TRACE]
    for value in given:
        if value not in (b"0", b"1"):
            raise BadRequest(f"X-Pagoda-Trace: {value[:40].decode('latin-1')!r} is neither 1 nor 0", param="X-Pagoda-Trace")
    return b"1" in given


def _variant(text: str) -> str | None:
    variant: str | None = None
    for part in text.split(","):
        name, equals, value = part.strip(" \t").partition("=")
        if name in NOT_AVAILABLE and equals:
            raise BadRequest(f"{PARAM}: {name} is not available yet: leave it out", param=PARAM)
        if name != "variant" or not equals:
            raise BadRequest(f"{PARAM}: {part.strip()[:40]!r} is not known: the form is variant=NAME", param=PARAM)
        if variant is not None:
            raise BadRequest(f"{PARAM} names two variants: name one", param=PARAM)
        if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value) is None:
            raise BadRequest(f"{PARAM}: {value[:40]!r} is not a variant's name: the form is variant=NAME", param=PARAM)
        variant = value
    return variant
