"""POST /admin/sleep and /admin/wake: every worker of a model gives its memory back, or takes it again, before somebody asks.

Answers to a path and a query; internal.py checks the token and speaks HTTP. Knows no wire: the calls come from backends/sleep.py.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol
from urllib.parse import parse_qsl

from pagoda_router.backends.sleep import WorkerAnswer
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.errors import RouterError
from pagoda_router.fleet import Fleet
from pagoda_router.http.internal import error_document

SLEEP, WAKE = "/admin/sleep", "/admin/wake"
LEVELS = {"1": 1, "2": 2}
TAKES = {SLEEP: ("model", "level", "timeout"), WAKE: ("model", "timeout")}
USUAL_TIMEOUT_S, LONGEST_TIMEOUT_S = 60.0, 3600.0


class SleepCalls(Protocol):
    """Never raise: what went wrong is in the answer."""

    async def sleep(self, endpoint: Endpoint, level: int, timeout_s: float) -> WorkerAnswer: ...
    async def wake(self, endpoint: Endpoint, timeout_s: float) -> WorkerAnswer: ...


class SleepAdmin:
    def __init__(self, fleet: Fleet, calls: SleepCalls) -> None:
        self._fleet = fleet
        self._calls = calls

    async def __call__(self, path: str, query: bytes) -> tuple[int, dict[str, Any]] | None:
        """None: no such path."""
        if path not in TAKES:
            return None
        given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        unknown = given.keys() - set(TAKES[path])
        if unknown:
            return 400, error_document(f"{path} knows no {min(unknown)[:40]!r}: it takes {', '.join(TAKES[path])}", "unknown_field")
        level = LEVELS.get(given.get("level", "1"))
        if level is None:
            return 400, error_document("level is 1 (weights to host memory) or 2 (weights dropped)", "bad_level")
        timeout_s = _seconds(given.get("timeout"))
        if timeout_s is None:
            return 400, error_document(f"timeout is a number of seconds above 0, at most {LONGEST_TIMEOUT_S:g}", "bad_timeout")
        try:
            model = self._fleet.get(given.get("model", "")).model
        except RouterError as error:
            return error.status, error_document(error.message, "model_not_found")
        if path == SLEEP:
            return await self._of_all(model, lambda endpoint: self._calls.sleep(endpoint, level, timeout_s))
        return await self._of_all(model, lambda endpoint: self._calls.wake(endpoint, timeout_s))

    async def _of_all(self, model: Any, ask: Callable[[Endpoint], Any]) -> tuple[int, dict[str, Any]]:
        """200 when every worker did it; 409 when one could not, with its sentence; the others did."""
        links = self._fleet.links(model)
        if not links:
            return 409, error_document(f"{model} has no worker now", "no_worker")
        answers: list[WorkerAnswer] = await asyncio.gather(*(ask(link.endpoint) for link in links))
        workers = [_document(answer) for answer in answers]
        return (409 if any(answer.error for answer in answers) else 200), {"model": model, "workers": workers}


def _document(answer: WorkerAnswer) -> dict[str, Any]:
    names = {"worker": "worker", "freed_bytes": "freedBytes", "load_ms": "loadMs", "error": "error"}
    return {names[field]: value for field, value in asdict(answer).items() if value not in (None, "")}


def _seconds(text: str | None) -> float | None:
    try:
        value = USUAL_TIMEOUT_S if text is None else float(text)
    except ValueError:
        return None
    return value if 0 < value <= LONGEST_TIMEOUT_S else None
