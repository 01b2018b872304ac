"""Which other origins' pages may call us from a browser (CORS), and the headers that tell it. Pure; app.py asks it per request.

Off unless PAGODA_CORS_ORIGINS names some. Credentials (cookies, which we never read) are never allowed; an API key comes in a header of its
own, which a page sends only when its script has it.
"""

import re
from urllib.parse import urlsplit

from pagoda_router.errors import ConfigError
from pagoda_router.http.asgi import Headers, Scope, header

EVERYONE = "*"
EXPOSED = (
    b"x-request-id, x-trace-id, x-pagoda-features, x-pagoda-refused, retry-after, retry-after-ms, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
"""Of an answer, what scripts may read beyond the few that browsers always show."""
REMEMBERED_S = 600
VARY = (b"vary", b"origin")
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,2000}")


def parse_origins(text: str) -> tuple[str, ...]:
    """`*`, or origins as browsers write them, with commas between. Raises ConfigError."""
    origins = tuple(dict.fromkeys(part.strip().rstrip("/").lower() for part in text.split(",") if part.strip()))
    if EVERYONE in origins and len(origins) > 1:
        raise ConfigError("PAGODA_CORS_ORIGINS names * and others: * is everyone, write it alone")
    for origin in origins:
        if origin != EVERYONE and not _is_origin(origin):
            raise ConfigError(f"PAGODA_CORS_ORIGINS={origin!r} is not an origin: write https://chat.example.org, without a path, or *")
    return origins


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and text == f"{parts.scheme}://{parts.netloc}" and "@" not in text
    except ValueError:
        return False


class Cors:
    def __init__(self, origins: tuple[str, ...]) -> None:
        """`origins`: of parse_origins, at least one."""
        self._everyone = EVERYONE in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def headers(self, scope: Scope) -> Headers:
        """Onto any answer, errors too: without them a page's script does not even learn what was wrong."""
        origin = header(scope, b"origin")
        if self._everyone:
            return [] if origin is None else [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        if origin is None or origin.lower() not in self._origins:
            return [VARY]
        return [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", EXPOSED), VARY]

    def preflight(self, scope: Scope) -> Headers | None:
        """What a browser may send, which asks that before it sends a key or JSON. None: the request is no such question, or not allowed."""
        if scope["method"] != "OPTIONS" or header(scope, b"access-control-request-method") is None:
            return None
        allowed = self.headers(scope)
        if len(allowed) < 2:
            return None
        wanted = header(scope, b"access-control-request-headers") or b""
        names = wanted if _NAMES.fullmatch(wanted) else b"authorization, content-type"
        return [
            *(pair for pair in allowed if pair[0] != b"access-control-expose-headers"),
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", names),
            (b"access-control-max-age", str(REMEMBERED_S).encode()),
        ]
