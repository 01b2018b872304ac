"""Asks a process over HTTP how it is. Owns the one HTTP client; knows nothing of pods. Called by pod.py."""

import re
from dataclasses import dataclass
from typing import Any

import httpx

TIMEOUT_S = 2.0
WORD = re.compile(r"[A-Z][A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Answer:
    ok: bool
    reason: str = ""
    """One CamelCase word when the process gave one."""
    message: str = ""
    progress: float | None = None


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
            return Answer(True)
        return _not_ok(response)

    async def close(self) -> None:
        await self._client.aclose()


def _not_ok(response: httpx.Response) -> Answer:
    body: Any = {}
    try:
        body = response.json()
    except ValueError:
        pass
    if not isinstance(body, dict):
        body = {}
    reason, progress = str(body.get("reason") or ""), body.get("progress")
    message = str(body.get("message") or "") or reason or f"it answered {response.status_code}"
    return Answer(
        False,
        reason=reason if WORD.fullmatch(reason) else "",
        message=message,
        progress=float(progress) if isinstance(progress, int | float) else None,
    )
