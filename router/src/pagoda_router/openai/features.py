"""What headers ask of one request: `X-Pagoda-Features: variant=NAME, prefix-cache=off`, `X-Backend: vllm`, `X-Pagoda-Class: throughput`,
`X-Pagoda-Deadline-Ms: 1500`, `X-Pagoda-Trace: 1`.

Pure; app.py calls it before the body is read. Read strictly: a toggle that would be ignored makes two measurements look alike that are not,
so everything else is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from pagoda_router.errors import BadRequest
from pagoda_router.generation import CatalogEntry, RequestClass
from pagoda_router.http.asgi import Headers
from pagoda_router.relays import OWN_BACKEND

FEATURES = b"x-pagoda-features"
BACKEND = b"x-backend"
NOT_AVAILABLE = frozenset({"speculation", "batching"})
ALIASES = {b"x-pagoda-speculation": "X-Pagoda-Speculation"}
PARAM = "X-Pagoda-Features"
BACKEND_PARAM = "X-Backend"
TRACE = b"x-pagoda-trace"
CLASS = b"x-pagoda-class"
DEADLINE = b"x-pagoda-deadline-ms"
LONGEST_DEADLINE_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Of one request's headers."""

    variant: str | None = None
    """The one that the client insists on."""
    backend: str | None = None
    """The same of spec.engine.backend."""
    prefix_cache: bool = True
    """False: nothing that earlier requests left in a KV cache is used."""


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
        elif name in ALIASES:
            raise BadRequest(f"{ALIASES[name]} is not available yet: leave it out", param=ALIASES[name])
    if not features and not backends:
        return NO_WISHES
    if len(set(backends)) > 1:
        raise BadRequest("X-Backend names two backends: name one", param=BACKEND_PARAM)
    toggles = _toggles(",".join(features)) if features else {}
    return Wishes(
        variant=toggles.get("variant"), backend=backends[0] if backends else None, prefix_cache=toggles.get("prefix-cache") != "off"
    )


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


def variant_and_backend(entry: CatalogEntry, wishes: Wishes, can_answer: Callable[[str], bool], rng: Random) -> tuple[str | None, str]:
    """The variant to insist on, and the backend that the request is written for. None: any variant, drawn when it is placed.

    Where the variants have different backends the draw is made here, before the prompt is read: one of them takes tokens, another text.
    `can_answer`: of a variant, now. Raises BadRequest for what the model does not offer.
    """
    backends_told = entry.backends or (OWN_BACKEND,) * len(entry.variants)
    if wishes.variant is wishes.backend is None and len(set(backends_told)) == 1:
        return None, backends_told[0]
    offered = list(zip(entry.variants, backends_told, entry.weights or (1,) * len(entry.variants), strict=True))
    if wishes.variant is not None:
        offered = [offer for offer in offered if offer[0] == wishes.variant]
        if not offered:
            has = ", ".join(entry.variants)
            raise BadRequest(f"{entry.served_name} has no variant {wishes.variant!r}; it has: {has}", param=PARAM)
    if wishes.backend is not None:
        offered = [offer for offer in offered if offer[1] == wishes.backend]
        if not offered:
            has = ", ".join(dict.fromkeys(backends_told))
            of = f" in variant {wishes.variant}" if wishes.variant is not None else ""
            raise BadRequest(
                f"{entry.served_name} is not offered by the backend {wishes.backend[:40]!r}{of}; it is by: {has}", param=BACKEND_PARAM
            )
    if wishes.variant is not None:
        return wishes.variant, offered[0][1]
    weighed = [offer for offer in offered if offer[2] > 0] or [(variant, backend, 1) for variant, backend, _ in offered]
    ready = [offer for offer in weighed if can_answer(offer[0])] or weighed
    ((variant, backend, _),) = rng.choices(ready, weights=[weight for _, _, weight in ready])
    return variant, backend


def _toggles(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip(" \t").partition("=")
        if name in NOT_AVAILABLE and equals:
            raise BadRequest(f"{PARAM}: {name} is not available yet: leave it out", param=PARAM)
        if name not in ("variant", "prefix-cache") or not equals:
            raise BadRequest(f"{PARAM}: {part.strip()[:40]!r} is not known: the forms are variant=NAME and prefix-cache=off", param=PARAM)
        if name in found:
            what = "variants" if name == "variant" else "values of prefix-cache"
            raise BadRequest(f"{PARAM} names two {what}: name one", param=PARAM)
        if name == "variant" and re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value) is None:
            raise BadRequest(f"{PARAM}: {value[:40]!r} is not a variant's name: the form is variant=NAME", param=PARAM)
        if name == "prefix-cache" and value not in ("on", "off"):
            raise BadRequest(f"{PARAM}: prefix-cache is {value[:40]!r}: write on or off", param=PARAM)
        found[name] = value
    return found
