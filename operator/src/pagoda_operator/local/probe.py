"""Asks a process over HTTP how it is. Owns the one HTTP client; knows nothing of pods. Called by pod.py."""

import re
from dataclasses import dataclass
from typing import Any

import httpx

from pagoda_operator.observed.pods import capacity_of
from pagoda_operator.observed.world import Capacity

TIMEOUT_S = 2.0
WORD = re.compile(r"[A-Z][A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Answer:
    ok: bool
    reason: str = ""
    """One CamelCase word when the process gave one."""
    message: str = ""
    progress: float | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    capacity: Capacity | None = None
    engine_failures: int = 0


class Prober:
    def __init__(self) -> None:
        # trust_env=False: a proxy variable must not carry loopback requests away
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)

    async def ask(self, host: str, port: int, path: str) -> Answer:
        address = f"[{host}]" if ":" in host else host
        try:
            response = await self._client.get(f"http://{address}:{port}{path}")
        except httpx.TimeoutException:
            return Answer(False, message=f"{path} did not answer within {TIMEOUT_S:g} s")
        except httpx.HTTPError:
            return Answer(False, message=f"{path} is not reachable yet")
        if response.status_code == 200:
            return Answer(True, capacity=capacity_of(_body(response).get("capacity")))
        return _not_ok(response)

    async def close(self) -> None:
        await self._client.aclose()


def _not_ok(response: httpx.Response) -> Answer:
    body = _body(response)
    reason, progress = str(body.get("reason") or ""), body.get("progress")
    done, total, failures = body.get("bytesDone"), body.get("bytesTotal"), body.get("engineFailures")
    message = str(body.get("message") or "") or reason or f"it answered {response.status_code}"
    return Answer(
        False,
        reason=reason if WORD.fullmatch(reason) else "",
        message=message,
        progress=float(progress) if isinstance(progress, int | float) else None,
        bytes_done=done if isinstance(done, int) else None,
        bytes_total=total if isinstance(total, int) else None,
        engine_failures=failures if isinstance(failures, int) else 0,
    )


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
