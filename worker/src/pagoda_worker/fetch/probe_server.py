"""/health, /ready and the log's line every few seconds while the step works, each in a thread of its own. Called by __main__."""

import http.server
import json
import logging
import threading
import time

from pagoda_worker.errors import ConfigError
from pagoda_worker.fetch.step import FetchState
from pagoda_worker.readiness import share

LOG_INTERVAL_S = 5.0

log = logging.getLogger(__name__)


class ProbeServer:
    def __init__(self, state: FetchState, host: str, port: int) -> None:
        """Raises ConfigError when the port is taken."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(state, self.path)
                content = json.dumps(body, ensure_ascii=False).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
                """Probes come every second; nobody reads a line of each."""

        try:
            self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}): set PAGODA_HTTP_PORT to another port") from error
        self.port: int = self._server.server_address[1]
        self._ended = threading.Event()
        for target in (self._server.serve_forever, lambda: _tell(state, self._ended)):
            threading.Thread(target=target, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()


def answer(state: FetchState, path: str) -> tuple[int, dict[str, object]]:
    if path == "/health":
        return 200, {"status": "ok"}
    if path == "/ready":
        readiness = state.readiness()
        return readiness.status, readiness.body()
    return 404, {"error": f"there is no {path}; there are /health, /ready"}


def _tell(state: FetchState, ended: threading.Event) -> None:
    before, at = state.bytes_done or 0, time.monotonic()
    while not ended.wait(LOG_INTERVAL_S):
        done, now = state.bytes_done or 0, time.monotonic()
        part = share(state.bytes_done, state.bytes_total)
        speed = "" if part is None else f" ({part:.0%}), {max(done - before, 0) / (now - at) / 1e6:.1f} MB/s"
        log.info("%s%s", state.sentence(), speed)
        before, at = done, now
