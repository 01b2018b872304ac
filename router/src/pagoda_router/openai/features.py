"""What headers ask of one request: `X-Pagoda-Features: variant=NAME, prefix-cache=off`, `X-Backend: vllm`, `X-Pagoda-Class: throughput`,
`X-Pagoda-Deadline-Ms: 1500`, `X-Pagoda-Trace: 1`, `X-Pagoda-Speculation: off`.

Pure; app.py calls it before the body is read. Read strictly: a switch that would be ignored makes two measurements look alike that are not,
so everything else is refused. Which variant a switch leads to is offers.py's.
"""

import re
from dataclasses import dataclass

from pagoda_router.abilities import ALL_ON, Switches
from pagoda_router.errors import BadRequest
from pagoda_router.generation import RequestClass
from pagoda_router.http.asgi import Headers

FEATURES = b"x-pagoda-features"
BACKEND = b"x-backend"
SPECULATION = b"x-pagoda-speculation"
ON_OR_OFF = ("prefix-cache", "batching", "speculation")
FORMS = "variant=NAME, quantization=KIND, " + ", ".join(f"{name}=off" for name in ON_OR_OFF)
PARAM = "X-Pagoda-Features"
BACKEND_PARAM = "X-Backend"
TRACE = b"x-pagoda-trace"
CLASS = b"x-pagoda-class"
DEADLINE = b"x-pagoda-deadline-ms"
OWN_HEADERS = (b"x-pagoda-", BACKEND)
"""How the names begin of all that is asked for here."""
LONGEST_DEADLINE_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Of one request's headers."""

    variant: str | None = None
    """The one that the client insists on."""
    backend: str | None = None
    """The same of spec.engine.backend."""
    quantization: str | None = None
    """The same of what its variant declares as spec.engine.quantization."""
    switches: Switches = ALL_ON


NO_WISHES = Wishes()


def wishes_of(headers: Headers) -> Wishes:
    """Raises BadRequest naming what is not known."""
    features: list[str] = []
    backends: list[str] = []
    for name, value in headers:
        if name == FEATURES:
            features.append(value.decode("latin-1"))
        elif name == BACKEND:
            backends.append(value.decode("latin-1").strip(" \t"))
        elif name == SPECULATION:
            features.append("speculation=" + value.decode("latin-1").strip(" \t"))
    if not features and not backends:
        return NO_WISHES
    if len(set(backends)) > 1:
        raise BadRequest("X-Backend names two backends: name one", param=BACKEND_PARAM)
    given = _switches(",".join(features)) if features else {}
    switches = Switches(*(given.get(name) != "off" for name in ON_OR_OFF))
    return Wishes(
        variant=given.get("variant"),
        backend=backends[0] if backends else None,
        quantization=given.get("quantization"),
        switches=ALL_ON if switches == ALL_ON else switches,
    )


def class_of(headers: Headers, allowed: RequestClass) -> RequestClass:
    """The request's class: a header may lower what its key allows, and asking for more than that changes nothing. Raises BadRequest."""
    if not headers:
        return allowed
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


def _switches(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip(" \t").partition("=")
        if name not in ("variant", "quantization", *ON_OR_OFF) or not equals:
            raise BadRequest(f"{PARAM}: {part.strip()[:40]!r} is not known: the forms are {FORMS}", param=PARAM)
        if name in found:
            raise BadRequest(f"{PARAM} names {name} twice: name it once", param=PARAM)
        if name == "variant" and re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value) is None:
            raise BadRequest(f"{PARAM}: {value[:40]!r} is not a variant's name: the form is variant=NAME", param=PARAM)
        if name == "quantization" and re.fullmatch(r"[a-z0-9][-_.a-z0-9]{0,31}", value) is None:
            raise BadRequest(
                f"{PARAM}: quantization is {value[:40]!r}: write none, int8, or what else the model's variants declare", param=PARAM
            )
        if name in ON_OR_OFF and value not in ("on", "off"):
            raise BadRequest(f"{PARAM}: {name} is {value[:40]!r}: write on or off", param=PARAM)
        found[name] = value
    return found
