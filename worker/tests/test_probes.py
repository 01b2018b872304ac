"""The probes' answers, without a server."""

import json
from typing import Any

from pagoda_worker.front.probes import Probes
from pagoda_worker.readiness import Readiness


async def ask(
    path: str, *, method: str = "GET", health: str | None = None, ready: Readiness | None = None
) -> tuple[int, bytes, dict[str, str]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("probes read no body")

    async def metrics() -> bytes:
        return b"metric 1\n"

    probes = Probes(health=lambda: health, ready=lambda: ready or Readiness(ready=True), metrics=metrics)
    await probes({"type": "http", "method": method, "path": path}, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], sent[1]["body"], headers


async def test_healthy_is_200():
    status, body, headers = await ask("/health")
    assert (status, json.loads(body), headers["content-type"]) == (200, {"status": "ok"}, "application/json")


async def test_unhealthy_is_503_with_the_reason():
    status, body, _ = await ask("/health", health="no token moved for 25 s")
    assert (status, json.loads(body)["reason"]) == (503, "no token moved for 25 s")


async def test_not_ready_is_503_with_one_word_one_line_and_progress_as_a_number():
    loading = Readiness(ready=False, reason="Loading", message="loading weights:\n1 of 4 GB", bytes_done=10**9, bytes_total=4 * 10**9)
    status, body, _ = await ask("/ready", ready=loading)
    assert status == 503
    assert json.loads(body) == {
        "ready": False,
        "reason": "Loading",
        "message": "loading weights: 1 of 4 GB",
        "progress": 0.25,
        "bytesDone": 10**9,
        "bytesTotal": 4 * 10**9,
    }


async def test_progress_is_null_when_nothing_is_counted():
    _, body, _ = await ask("/ready", ready=Readiness(ready=False, reason="Stalled", message="no token moved"))
    assert (json.loads(body)["progress"], json.loads(body)["bytesTotal"]) == (None, None)


async def test_ready_tells_the_capacity():
    _, body, _ = await ask("/ready", ready=Readiness(ready=True, capacity={"kvTokens": 1024}))
    assert json.loads(body) == {"ready": True, "capacity": {"kvTokens": 1024}}


async def test_head_has_the_length_and_no_body():
    status, body, headers = await ask("/metrics", method="HEAD")
    assert (status, body, headers["content-length"]) == (200, b"", "9")


async def test_other_paths_are_404_and_name_what_there_is():
    status, body, _ = await ask("/healthz")
    assert (status, json.loads(body)["error"]) == (404, "there is no /healthz; there are /health, /ready, /metrics")


async def test_other_methods_are_405():
    assert (await ask("/ready", method="POST"))[0] == 405
