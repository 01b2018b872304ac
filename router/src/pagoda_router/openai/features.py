"""What headers ask of one request: `X-Pagoda-Features: variant=NAME`. Pure; app.py calls it before the body is read.

Read strictly: a toggle that would be ignored makes two measurements look alike that are not, so everything else is refused.
"""

import re

from pagoda_router.asgi import Headers
from pagoda_router.errors import BadRequest

FEATURES = b"x-pagoda-features"
NOT_AVAILABLE = frozenset({"speculation", "prefix-cache", "batching"})
ALIASES = {b"x-pagoda-speculation": "X-Pagoda-Speculation", b"x-backend": "X-Backend"}
PARAM = "X-Pagoda-Features"


def variant_of(headers: Headers) -> str | None:
    """The variant that the client insists on. Raises BadRequest."""
    given: list[str] = []
    for name, value in headers:
        if name == FEATURES:
            given.append(value.decode("latin-1"))
        elif name in ALIASES:
            raise BadRequest(f"{ALIASES[name]} is not available yet: leave it out", param=ALIASES[name])
    return _variant(",".join(given)) if given else None


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
