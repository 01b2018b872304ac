"""Serves recorded expositions as /NAME, with counters that grow by a tenth of their recorded value at each scrape."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from promql import OF_HISTOGRAM

SAMPLE = re.compile(r"^(?P<series>(?P<name>[a-zA-Z_:][\w:]*)(?:\{.*\})?) (?P<value>\S+)$")
GROWTH = 0.1


class Recording:
    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        self._scrapes = 0

    def scraped(self) -> str:
        """All buckets of a histogram grow alike: quantiles stay those that were recorded."""
        self._scrapes += 1
        return "\n".join(map(self._line, self._lines)) + "\n"

    def _line(self, line: str) -> str:
        sample = SAMPLE.match(line)
        if sample is None or not self._grows(sample["name"]):
            return line
        return f"{sample['series']} {float(sample['value']) * (1 + GROWTH * self._scrapes)}"

    def _grows(self, name: str) -> bool:
        return self._kinds.get(name) == "counter" or self._kinds.get(OF_HISTOGRAM.sub("", name)) == "histogram"


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """The port on loopback, and the paths."""
    recordings = {f"/{path.stem}": Recording(path.read_text()) for path in sorted(folder.glob("*.prom"))}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = recordings[self.path].scraped().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], list(recordings)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
