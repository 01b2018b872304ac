"""Stands for the router in the supervisor's tests: probes, the fleet report, the model list and a chat that repeats the question."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

API_KEY = os.environ.get("PAGODA_API_KEY", "")
SLEEPS = threading.Event()
"""All workers do, since the last /admin/sleep."""


def fleet() -> dict:
    file = Path(os.environ["PAGODA_FLEET_FILE"])
    return json.loads(file.read_text()) if file.exists() else {"models": [], "endpointSlices": []}


def workers() -> list:
    return [
        {
            "name": each["metadata"]["name"],
            "address": f"127.0.0.1:{each['ports'][0]['port']}",
            "routable": conditions["ready"],
            "sleeps": SLEEPS.is_set(),
        }
        for each in fleet()["endpointSlices"]
        for conditions in [each["endpoints"][0]["conditions"]]
    ]


def demand() -> dict:
    """As demand.json in the state folder says; a test writes it."""
    file = Path(os.environ["PAGODA_HOME"]) / "demand.json"
    return json.loads(file.read_text()) if file.exists() else {}


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/internal/v1/fleet":
            assert self.headers["authorization"] == f"Bearer {os.environ['PAGODA_INTERNAL_TOKEN']}"
            self.answer(200, {"models": demand(), "workers": workers()})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": model["metadata"]["name"]} for model in fleet()["models"]]})
        else:
            self.answer(200, {"ready": True})

    def do_POST(self) -> None:
        if self.path.startswith("/admin/"):
            self.admin()
            return
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if API_KEY and self.headers["authorization"] != f"Bearer {API_KEY}":
            self.answer(401, {"error": {"message": "the API key is wrong"}})
            return
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        words = asked["messages"][-1]["content"].split()
        for word in words:
            self.event({"choices": [{"delta": {"content": f"{word} "}, "finish_reason": None}]})
        if words == ["break"]:
            self.event({"error": {"message": "the worker was lost"}})
        self.event({"choices": [], "usage": {"completion_tokens": len(words)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def admin(self) -> None:
        """Tells back what it was asked; the model `broken` cannot."""
        assert self.headers["authorization"] == f"Bearer {os.environ['PAGODA_INTERNAL_TOKEN']}"
        asked = urlsplit(self.path)
        query = dict(parse_qsl(asked.query))
        if query["model"] == "nobody":
            self.answer(404, {"error": {"message": "there is no model 'nobody'"}})
        elif query["model"] == "broken":
            self.answer(409, {"workers": [{"worker": "w-0", "freedBytes": 1}, {"worker": "w-1", "error": "the weights are gone"}]})
        elif asked.path == "/admin/sleep":
            SLEEPS.set()
            self.answer(200, {"workers": [{"worker": f"w-level-{query['level']}", "freedBytes": 8_200_000}]})
        else:
            SLEEPS.clear()
            self.answer(200, {"workers": [{"worker": "w-0", "loadMs": 1250.0}, {"worker": "w-1", "loadMs": 0.0}]})

    def event(self, body: dict) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
for name in ("PAGODA_HTTP_PORT", "PAGODA_INTERNAL_PORT"):
    server = ThreadingHTTPServer((os.environ["PAGODA_BIND_HOST"], int(os.environ[name])), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
print("listening", file=sys.stderr, flush=True)
signal.sigwait({signal.SIGTERM})
print("drained", file=sys.stderr)
