"""The Lease that makes one of several replicas the active one. Owns its record; __main__ acts on gain and loss.

A standby trusts only its own clock: the holder is gone when the record has not changed for the duration that it names. A holder stops
before that: it may write only while its last renewal is younger.

The record belongs to the operator's service account, and Kubernetes removes it with that one. Not to the chart: a replica that starts
before Helm gets to the Lease would make the installation fail, and one that ends after it would leave a new one behind.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.cluster.client import Api
from pagoda_operator.cluster.errors import ClusterError, Conflict, LeaseLost, NotFound
from pagoda_operator.cluster.resources import LEASES

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 3.0
WHO_AM_I = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
"""Everybody may ask."""

Json = dict[str, Any]


class Lease:
    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_s: float,
        renew_deadline_s: float,
        retry_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration_s = duration_s
        self._renew_deadline_s = renew_deadline_s
        self._retry_s = retry_s
        self._clock = clock
        self._renewed_at: float | None = None
        """Sent at, not answered at: the others count from what they see later."""
        self._seen: tuple[str, float] | None = None
        """The record's version as last seen, and when it was first seen."""

    @property
    def held(self) -> bool:
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._duration_s

    def check(self) -> None:
        """Before every write. Raises LeaseLost."""
        if not self.held:
            raise LeaseLost("the Lease ran out before it was renewed")

    async def acquire(self) -> None:
        """Returns when it is ours."""
        told = ""
        while not self.held:
            try:
                holder = await self._try()
                news = f"{holder} holds the Lease; standing by" if holder else ""
            except ClusterError as error:
                news = f"the Lease cannot be read: {error}"
            if news and news != told:
                log.info("%s", news)
                told = news
            if not self.held:
                await asyncio.sleep(self._retry_s / 2)
        log.info("%s holds the Lease", self._identity)

    async def keep(self) -> None:
        """Renews until that fails for too long, then raises LeaseLost."""
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                if holder := await self._try():
                    raise LeaseLost(f"{holder} took the Lease")
            except LeaseLost:
                raise
            except ClusterError as error:
                log.warning("the Lease was not renewed: %s", error)
            if self._renewed_at is None or self._clock() - self._renewed_at > self._renew_deadline_s:
                raise LeaseLost(f"the Lease was not renewed for {self._renew_deadline_s:g} s")

    def resign(self) -> bool:
        """From now on nothing may be written. Returns whether it was held."""
        held, self._renewed_at = self.held, None
        return held

    async def release(self) -> None:
        """So that the next one need not wait. Failing is harmless: then it waits."""
        for _ in range(3):  # a renewal may still be under way
            try:
                record = await self._read()
                if record is not None and record["spec"].get("holderIdentity") == self._identity:
                    await self._write({**record, "spec": {**record["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}})
                return
            except Conflict:
                continue
            except ClusterError as error:
                log.info("the Lease was not given back: %s", error)
                return

    async def _try(self) -> str | None:
        """Takes or renews. Returns the other holder when there is one."""
        sent_at = self._clock()
        record = await self._read()
        if record is not None and (holder := self._other_holder(record)):
            return holder
        try:
            await self._write(self._own(record or {"metadata": await self._new_metadata()}))
        except Conflict:
            return "another replica"
        self._renewed_at = sent_at
        return None

    def _other_holder(self, record: Mapping[str, Any]) -> str | None:
        spec = record.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder in ("", self._identity):
            return None
        version = record["metadata"]["resourceVersion"]
        if self._seen is None or self._seen[0] != version:
            self._seen = (version, self._clock())
        expired = self._clock() - self._seen[1] >= float(spec.get("leaseDurationSeconds") or self._duration_s)
        return None if expired else str(holder)

    async def _new_metadata(self) -> Json:
        metadata: Json = {"name": self._name, "namespace": self._namespace}
        question = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await self._api.call("POST", WHO_AM_I, body=question, timeout_s=CALL_TIMEOUT_S, attempts=1)
        user = answer["status"]["userInfo"]
        account = user["username"].removeprefix(f"system:serviceaccount:{self._namespace}:")
        if account != user["username"]:
            metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "ServiceAccount", "name": account, "uid": user["uid"]}]
        return metadata

    def _own(self, record: Mapping[str, Any]) -> Json:
        spec = record.get("spec") or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = spec.get("holderIdentity") == self._identity
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": record["metadata"],
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, math.ceil(self._duration_s)),  # never less than we hold it for
                "acquireTime": spec.get("acquireTime") if mine else now,
                "renewTime": now,
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if mine or not spec else 1),
            },
        }

    async def _read(self) -> Json | None:
        try:
            return await self._api.call("GET", LEASES.path(self._namespace, self._name), timeout_s=CALL_TIMEOUT_S, attempts=1)
        except NotFound:
            return None

    async def _write(self, record: Json) -> None:
        """The version in its metadata makes the API server refuse it when another was faster. Raises Conflict."""
        create = "resourceVersion" not in record["metadata"]
        path = LEASES.path(self._namespace, None if create else self._name)
        await self._api.call("POST" if create else "PUT", path, body=record, timeout_s=CALL_TIMEOUT_S, attempts=1)
