"""Proof of life: an InferenceModel that nothing is planned for gets a beat every few seconds, and the watch must show it.

A watch that died in silence then fails /health instead of going unnoticed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pagoda_operator.cluster.client import MERGE_PATCH, Api
from pagoda_operator.cluster.errors import ClusterError, NotFound
from pagoda_operator.cluster.resources import MODELS

log = logging.getLogger(__name__)

BEAT_S = 5.0
HANDLED_WITHIN_S = 30.0


class Canary:
    def __init__(self, api: Api, key: tuple[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._key = key
        self._clock = clock
        self._written_at: float | None = None
        """The first beat that is not yet handled."""
        self._handled_at = clock()
        self._missing = False

    def handled(self, document: Mapping[str, Any]) -> None:
        """The watch showed it, with whatever beat."""
        metadata = document["metadata"]
        if (metadata["namespace"], metadata["name"]) == self._key:
            self._written_at, self._handled_at = None, self._clock()

    def trouble(self) -> str | None:
        if self._written_at is None or self._clock() - self._written_at < HANDLED_WITHIN_S:
            return None
        return f"the watch of InferenceModels has not shown the canary's beats for {self._clock() - self._handled_at:.0f} s"

    async def run(self) -> None:
        number = int(time.time())
        while True:
            number += 1
            try:
                await self._beat(number)
            except ClusterError as error:
                log.warning("the canary's beat was not written: %s", error)
            await asyncio.sleep(BEAT_S)

    async def _beat(self, number: int) -> None:
        namespace, name = self._key
        path, body = MODELS.path(namespace, name, "status"), {"status": {"beat": number}}
        sent_at = self._clock()
        try:
            await self._api.call("PATCH", path, body=body, content_type=MERGE_PATCH, attempts=1)
        except NotFound:
            if not self._missing:
                log.warning("there is no canary InferenceModel %s/%s: /health goes without it", namespace, name)
            self._missing, self._written_at = True, None
            return
        self._missing = False
        if self._written_at is None and self._handled_at < sent_at:
            self._written_at = sent_at
