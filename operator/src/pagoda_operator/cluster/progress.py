"""Asks workers how far they are (/ready, on the fetch step's or the worker's HTTP port), until they serve and have said what they can take.

Owns the last answer per pod. loop.py says which pods there are and hears of every change.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from pagoda_operator.labels import LABEL_COMPONENT
from pagoda_operator.observed.world import ObjectRef
from pagoda_operator.render.pods import WORKER_HTTP_PORT

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(2.0, connect=1.0)
AT_ONCE = 32
LONGEST_PAUSE_S = 5.0
LONGEST_PAUSE_SERVING_S = 300.0
"""A serving worker is asked only for its capacity; one that does not answer then is of an older version, or out of reach."""

Answer = Mapping[str, Any]


@dataclass(slots=True)
class _Asked:
    ref: ObjectRef
    uid: str
    ip: str
    serving: bool
    answer: Answer | None = None
    next_at: float = 0.0
    failures: int = 0
    busy: bool = field(default=False, compare=False)


class WorkerPolls:
    def __init__(self, *, changed: Callable[[ObjectRef], None], poll_s: float, port: int = WORKER_HTTP_PORT) -> None:
        self._changed = changed
        self._poll_s = poll_s
        self._port = port
        self._asked: dict[str, _Asked] = {}
        """By pod uid."""
        self._places = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False)

    def answer(self, uid: str) -> Answer | None:
        """The JSON of its last /ready."""
        asked = self._asked.get(uid)
        return asked.answer if asked else None

    def see(self, ref: ObjectRef, pod: Mapping[str, Any]) -> None:
        """A pod came or changed."""
        metadata, status = pod["metadata"], pod["status"]
        if (metadata.get("labels") or {}).get(LABEL_COMPONENT) != "worker":
            return
        uid, ip = metadata["uid"], status.get("podIP")
        ended = status.get("phase") in ("Succeeded", "Failed") or "deletionTimestamp" in metadata
        if ended or not ip:
            self._asked.pop(uid, None)
            return
        serving = any(each["type"] == "ContainersReady" and each["status"] == "True" for each in status["conditions"])
        known = self._asked.get(uid)
        if known is None:
            self._asked[uid] = _Asked(ref, uid, ip, serving)
        elif (known.ip, known.serving) != (ip, serving):
            known.ip, known.serving, known.next_at, known.failures = ip, serving, 0.0, 0

    def forget(self, uid: str) -> None:
        self._asked.pop(uid, None)

    async def run(self) -> None:
        try:
            while True:
                now = time.monotonic()
                for asked in self._asked.values():
                    if not asked.busy and asked.next_at <= now and not (asked.serving and _has_capacity(asked.answer)):
                        asked.busy = True
                        task = asyncio.create_task(self._ask(asked))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(self._poll_s)
        finally:
            for task in self._tasks:
                task.cancel()
            await self._client.aclose()

    async def _ask(self, asked: _Asked) -> None:
        host = f"[{asked.ip}]" if ":" in asked.ip else asked.ip
        answer: Any = None
        try:
            async with self._places:
                response = await self._client.get(f"http://{host}:{self._port}/ready")
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            log.debug("worker %s does not answer: %s", asked.ref, error)
        finally:
            asked.busy = False
        if isinstance(answer, dict):
            asked.failures, asked.next_at = 0, 0.0
        else:
            # what it said last stands until it says something else, or another container answers
            asked.failures += 1
            longest = LONGEST_PAUSE_SERVING_S if asked.serving else LONGEST_PAUSE_S
            pause = min(longest, self._poll_s * 2 ** min(asked.failures, 12))
            asked.next_at = time.monotonic() + pause * (0.8 + random.random() * 0.4)
            return
        if answer != asked.answer:
            asked.answer = answer
            self._changed(asked.ref)


def _has_capacity(answer: Answer | None) -> bool:
    return bool(answer and answer.get("ready"))
