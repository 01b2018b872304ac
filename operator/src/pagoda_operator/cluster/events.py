"""Kubernetes Events on InferenceModels: when Ready or Progressing turns, and why children changed. Few, and never in the way.

Posted in the background, at most so many per object and minute; one that cannot be posted is dropped.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.cluster.client import Api
from pagoda_operator.cluster.errors import ClusterError
from pagoda_operator.cluster.resources import EVENTS
from pagoda_operator.cluster.unit import Key

log = logging.getLogger(__name__)

PER_OBJECT = 10
WITHIN_S = 60.0
WAITING = 1000
LONGEST_NOTE = 1024
TOLD_TYPES = ("Ready", "Progressing")


class Teller:
    def __init__(self, api: Api, *, instance: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock
        self._told: dict[Key, deque[float]] = {}
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING)

    def tell(self, document: Mapping[str, Any], changes: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """`before` and `after` are statuses."""
        if changes:
            self._tell(document, "Normal", "Planned", "; ".join(changes))
        for kind, status, reason, message in turned(before, after):
            trouble = kind == "Ready" and status == "False" and reason not in ("Loading", "NoWorkers", "Asleep", "WeightsDownload")
            self._tell(document, "Warning" if trouble else "Normal", reason, f"{kind} is {status}: {message}")

    def forget(self, key: Key) -> None:
        self._told.pop(key, None)

    async def run(self) -> None:
        while True:
            event = await self._waiting.get()
            try:
                await self._api.call("POST", EVENTS.path(event["metadata"]["namespace"]), body=event, attempts=2)
            except ClusterError as error:
                log.info("an event was not posted: %s", error)

    def _tell(self, document: Mapping[str, Any], kind: str, reason: str, note: str) -> None:
        metadata = document["metadata"]
        told = self._told.setdefault(Key(metadata["namespace"], metadata["name"]), deque(maxlen=PER_OBJECT))
        now = self._clock()
        if len(told) == PER_OBJECT and now - told[0] < WITHIN_S:
            return
        told.append(now)
        try:
            self._waiting.put_nowait(self._event(document, kind, reason, note))
        except asyncio.QueueFull:
            log.debug("too many events wait to be posted")

    def _event(self, document: Mapping[str, Any], kind: str, reason: str, note: str) -> dict[str, Any]:
        metadata = document["metadata"]
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": metadata["namespace"]},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": kind,
            "reason": reason,
            "action": "Reconcile",
            "note": note[:LONGEST_NOTE],
            "regarding": {
                "apiVersion": document["apiVersion"],
                "kind": document["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reportingController": "pagoda.dev/operator",
            "reportingInstance": self._instance[:128],
        }


def turned(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(type, status, reason, message) of each told condition whose status or reason is another than before. The first ones are no news."""
    if not before.get("conditions"):
        return []
    old = {each["type"]: (each["status"], each["reason"]) for each in before.get("conditions") or ()}
    return [
        (each["type"], each["status"], each["reason"], each["message"])
        for each in after.get("conditions") or ()
        if each["type"] in TOLD_TYPES and old.get(each["type"]) != (each["status"], each["reason"])
    ]
