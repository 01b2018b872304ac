"""Compares the golden trace with the client's own clock: `python -m pagoda_bench.trace_check --url http://127.0.0.1:8000`.

Each request asks for its trace; the sum of the trace's parts stands beside the time from the client's first byte out to its last byte in.
Between the two are the kernel, the router's HTTP parser, and the client itself.
"""

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Compared:
    wall_ms: float
    """From the client's first byte out to its last byte in."""
    parts_ms: float
    """Sum of the trace's parts."""
    trace: dict[str, Any]

    @property
    def untold_ms(self) -> float:
        return self.wall_ms - self.parts_ms

    @property
    def untold_ratio(self) -> float:
        return self.untold_ms / self.wall_ms


def compare(url: str, count: int, *, model: str = "tiny", max_tokens: int = 64, stream: bool = True) -> list[Compared]:
    """One connection, one request after the other."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "127.0.0.1", place.port, timeout=60)
    connection.connect()
    try:
        return [_ask(connection, model, max_tokens, stream) for _ in range(count)]
    finally:
        connection.close()


def _ask(connection: http.client.HTTPConnection, model: str, max_tokens: int, stream: bool) -> Compared:
    question = [{"role": "user", "content": "Sort these numbers: 31, 7, 88, 19"}]
    body = {"model": model, "messages": question, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}
    headers = {"content-type": "application/json", "x-pagoda-trace": "1"}
    encoded = json.dumps(body).encode()
    began_s = time.monotonic()
    connection.request("POST", "/v1/chat/completions", encoded, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    wall_ms = (time.monotonic() - began_s) * 1000
    if answer.status != 200:
        raise SystemExit(f"the server answered {answer.status}: {text[:200]}")
    # A stream ends "…, the trace, [DONE], nothing".
    told = json.loads(text.split("\n\n")[-3].removeprefix("data: ") if stream else text)["pagoda_trace"]
    return Compared(wall_ms, sum(part["ms"] for part in told["phases"]), told)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare the sum of a trace's parts with the client's own wall time.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    given = parser.parse_args(arguments)
    for stream in (True, False):
        compare(given.url, 3, model=given.model, max_tokens=given.max_tokens, stream=stream)
        found = compare(given.url, given.requests, model=given.model, max_tokens=given.max_tokens, stream=stream)
        untold_ms, ratios = sorted(one.untold_ms for one in found), sorted(one.untold_ratio for one in found)
        last = len(found) * 95 // 100
        kept = sum(one.untold_ms <= 1 or one.untold_ratio <= 0.02 for one in found)
        print(
            f"{'stream' if stream else 'whole '}: wall {statistics.median(one.wall_ms for one in found):.1f} ms (median), "
            f"not in the trace {statistics.median(untold_ms):.3f} ms p50, {untold_ms[last]:.3f} ms p95 "
            f"({statistics.median(ratios):.2%} p50, {ratios[last]:.2%} p95); {kept} of {len(found)} within 2 % or 1 ms"
        )


if __name__ == "__main__":
    main()
