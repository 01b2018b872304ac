"""Stands for the worker in the supervisor's tests: answers the same probes within milliseconds, and misbehaves as behaviour.json in its
model folder says: {"exit": status, "crashes": how many lives end so, "say": last words, "ready", "healthy", "stubborn": bool, "reason",
"bytesDone": what it says while it is not ready}."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def behaviour() -> dict:
    source = os.environ["PAGODA_MODEL_SOURCE"]
    if source.startswith("hf://"):
        assert (Path(os.environ["PAGODA_MODEL_CACHE"]) / source.rpartition("/")[2] / "fetched").read_text() == source
    file = Path(source) / "behaviour.json"
    return json.loads(file.read_text()) if file.exists() else {}


def lives(count_file: Path) -> int:
    lived = int(count_file.read_text()) + 1 if count_file.exists() else 1
    count_file.write_text(str(lived))
    return lived


class Probes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        now = behaviour()
        loading = {"reason": now.get("reason", "the engine is loading"), "progress": 0.5, "bytesDone": now.get("bytesDone")}
        answers = {
            "/ready": (now.get("ready", True), {"ready": False, **loading}),
            "/health": (now.get("healthy", True), {"status": "unhealthy", "reason": "no token moved for 20 s"}),
        }
        ok, trouble = answers[self.path]
        body = json.dumps({"ready": True} if ok else trouble).encode()
        self.send_response(200 if ok else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    now = behaviour()
    source = Path(os.environ["PAGODA_MODEL_SOURCE"])
    if "exit" in now and lives(source / "lives") <= now.get("crashes", 10**9):
        print(now.get("say", "giving up"), file=sys.stderr)
        sys.exit(now["exit"])
    server = ThreadingHTTPServer((os.environ["PAGODA_BIND_HOST"], int(os.environ["PAGODA_HTTP_PORT"])), Probes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("environment " + json.dumps({k: v for k, v in os.environ.items() if k.startswith("PAGODA_")}), file=sys.stderr, flush=True)
    if now.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    signal.sigwait({signal.SIGTERM})
    print("drained", file=sys.stderr)


signal.pthread_sigmask(signal.SIG_BLOCK, set() if behaviour().get("stubborn") else {signal.SIGTERM})
main()
