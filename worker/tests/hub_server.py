"""A model hub and an S3 service on loopback, spoken to by the real clients over real HTTP, with the failures of real networks on demand.

The hub: /api/models/{id}/revision/{rev} and resolve with redirects to a second path (as its CDN), ETag, X-Repo-Commit, X-Linked-Size,
Range, gated and private models. S3: ListObjectsV2 and GET with Range and If-Match; signatures are noted, not checked.
"""

import dataclasses
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CHUNK = 64 * 1024


@dataclasses.dataclass
class Repository:
    """One model; `files` by name."""

    files: dict[str, bytes]
    gated: bool = False
    """Its listing is open, its files need TOKEN."""
    private: bool = False
    branches: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(self.files.items()))).hexdigest()


TOKEN = "hf_right"


class Behaviour:
    """What goes wrong from now on; tests set it between and during requests."""

    def __init__(self) -> None:
        self.cut_after: int | None = None
        """Each answer to a file ends after so many bytes, with the connection."""
        self.bytes_per_s: float | None = None
        self.statuses: list[int] = []
        """For the next requests, one each, instead of an answer."""
        self.ignores_range = False
        self.corrupt: dict[str, int] = {}
        """Name → how many more times it is sent with a flipped byte."""
        self.pause_at: int | None = None
        """Bytes after which a file's answer stands still until `go_on`."""
        self.go_on = threading.Event()
        self.standing = threading.Event()


class ModelServer:
    """Counts what it sent: `sent[name]` bytes of each file, `requests` as (method, path)."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.repositories: dict[str, Repository] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.behaviour = Behaviour()
        self.sent: dict[str, int] = {}
        self.requests: list[str] = []
        self.authorizations: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        handler = type("Bound", (_Handler,), {"world": self})
        self._server = ThreadingHTTPServer((host, 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.behaviour.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def bytes_sent(self) -> int:
        with self.lock:
            return sum(self.sent.values())


@contextmanager
def model_server(host: str = "127.0.0.1") -> Iterator[ModelServer]:
    server = ModelServer(host)
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    world: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        world, path = self.world, urlsplit(self.path).path
        with world.lock:
            world.requests.append(f"{self.command} {self.path}")
            world.authorizations.append((path, self.headers.get("Authorization", "")))
            status = world.behaviour.statuses.pop(0) if world.behaviour.statuses else 0
        try:
            if status:
                self._answer(status, b"{}", {"Retry-After": "0"} if status == 429 else {})
            elif api := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
                self._describe(api[1], unquote(api[2]))
            elif resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(resolve[1], resolve[2], unquote(resolve[3]))
            elif path.startswith("/cdn/"):
                _, _, owner, name, file = path.split("/", 4)
                self._send_file(f"{file}", world.repositories[f"{owner}/{name}"].files[unquote(file)])
            else:
                self._bucket(unquote(path).lstrip("/"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # ---- the hub

    def _describe(self, model: str, revision: str) -> None:
        repository = self.world.repositories.get(model)
        if repository is None or (repository.private and not self._allowed()):
            # the real hub answers 401 to both unless a token is sent
            known = "Authorization" in self.headers
            self._answer(404 if known else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*repository.branches, repository.commit):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [_sibling(name, content) for name, content in repository.files.items()]
            body = {"id": model, "sha": repository.commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
            self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, model: str, revision: str, name: str) -> None:
        repository = self.world.repositories.get(model)
        if repository is None or name not in repository.files or revision != repository.commit:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif (repository.gated or repository.private) and not self._allowed():
            self._answer(403 if "Authorization" in self.headers else 401, b"", {"X-Error-Code": "GatedRepo" if repository.gated else ""})
        else:
            content = repository.files[name]
            headers = {"X-Repo-Commit": repository.commit, "X-Linked-Size": str(len(content)), "ETag": f'"{_sha256(content)}"'}
            if _is_lfs(name):
                self._answer(302, b"", {**headers, "Location": f"/cdn/{model}/{name}", "X-Linked-Etag": f'"{_sha256(content)}"'})
            else:
                self._send_file(name, content, headers)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # ---- S3

    def _bucket(self, path: str) -> None:
        bucket, _, key = path.partition("/")
        objects = self.world.buckets.get(bucket)
        if objects is None:
            self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif self.headers.get("Authorization", "").find("Credential=wrong/") >= 0:
            self._answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
        elif not key:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            self._list(bucket, objects, query)
        elif key not in objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            etag = f'"{hashlib.md5(objects[key]).hexdigest()}"'
            if self.headers.get("If-Match", etag) != etag:
                self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            else:
                self._send_file(key.rsplit("/", 1)[-1], objects[key], {"ETag": etag, "Last-Modified": "Wed, 12 Oct 2022 17:50:00 GMT"})

    def _list(self, bucket: str, objects: dict[str, bytes], query: dict[str, str]) -> None:
        """Two keys a page, so that the client has to ask on."""
        keys = sorted(key for key in objects if key.startswith(query.get("prefix", "")) and key > query.get("continuation-token", ""))
        page = keys[:2]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2022-10-12T17:50:00.000Z</LastModified>"
            f"<ETag>&quot;{hashlib.md5(objects[key]).hexdigest()}&quot;</ETag><Size>{len(objects[key])}</Size></Contents>"
            for key in page
        )
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if keys[2:] else ""
        body = f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount>{more}{contents}</ListBucketResult>"
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    # ---- bytes

    def _send_file(self, name: str, content: bytes, headers: dict[str, str] | None = None) -> None:
        behaviour = self.world.behaviour
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end, status = 0, len(content), 200
        extra = dict(headers or {})
        if asked and not behaviour.ignores_range:
            start, end = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(content), len(content))
            if start >= len(content):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            status, extra["Content-Range"] = 206, f"bytes {start}-{end - 1}/{len(content)}"
        with self.world.lock:
            if behaviour.corrupt.get(name, 0) > 0:
                behaviour.corrupt[name] -= 1
                content = content[:-1] + bytes([content[-1] ^ 1])
        self._begin(status, end - start, extra)
        if self.command == "HEAD":
            return
        left = behaviour.cut_after if behaviour.cut_after is not None else end - start
        position = start
        while position < end:
            if behaviour.pause_at is not None and position - start >= behaviour.pause_at:
                behaviour.standing.set()
                behaviour.go_on.wait()
            piece = content[position : min(position + CHUNK, end, position + left)]
            if not piece:
                self.close_connection = True  # with less than Content-Length said
                self.connection.close()
                return
            with self.world.lock:  # before the write: the client may look as soon as it has the last byte
                self.world.sent[name] = self.world.sent.get(name, 0) + len(piece)
            self.wfile.write(piece)
            position, left = position + len(piece), left - len(piece)
            if behaviour.bytes_per_s:
                time.sleep(len(piece) / behaviour.bytes_per_s)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._begin(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()


def _is_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".bin")) or name == "tokenizer.json"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if _is_lfs(name):
        sibling["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 134}
    return sibling
