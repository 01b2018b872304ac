"""The console's static files, read once into memory: no build, no external resource, a policy that forbids both.

Knows nothing of models; the pages call /v1 and /admin/v1 like any client. app.py asks `page(path)`.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from pagoda_router.http.asgi import Headers, Scope, Send, answer, header

TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
SECURITY_HEADERS: Headers = (
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True, slots=True)
class Page:
    body: bytes
    headers: Headers
    etag: bytes

    async def answer(self, scope: Scope, send: Send, id_header: tuple[bytes, bytes]) -> None:
        headers = [*self.headers, id_header]
        if header(scope, b"if-none-match") == self.etag:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await answer(send, 200, headers, self.body)


class Console:
    """`/` is the page; its files lie under /console/."""

    def __init__(self) -> None:
        static = files("pagoda_router.console").joinpath("static")
        self._pages = {f"/console/{entry.name}": _page(entry.name, entry.read_bytes()) for entry in static.iterdir() if entry.is_file()}
        self._pages["/"] = self._pages["/console/index.html"]

    def page(self, path: str) -> Page | None:
        return self._pages.get(path)


def _page(name: str, body: bytes) -> Page:
    etag = b'"' + hashlib.sha256(body).hexdigest()[:16].encode() + b'"'
    content_type = TYPES[name.rpartition(".")[2]]
    return Page(body, [(b"content-type", content_type), (b"cache-control", b"no-cache"), (b"etag", etag), *SECURITY_HEADERS], etag)
