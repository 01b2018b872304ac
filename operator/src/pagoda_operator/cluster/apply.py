"""The only writer of children: server-side apply, deletes, replicas, status, readiness gate, secrets.

Nothing foreign is touched: creating looks first, deleting names the uid, and a field that another applier owns is left to it. What the API
server refuses comes back as a sentence; what may succeed later is raised.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from pagoda_operator.cluster import trim
from pagoda_operator.cluster.client import APPLY_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Api
from pagoda_operator.cluster.errors import ApiError, Conflict, NotFound, Refused, Unavailable
from pagoda_operator.cluster.resources import MODELS, PODS, SECRETS, path_of
from pagoda_operator.cluster.store import Store
from pagoda_operator.observed.pods import ROUTED_CONDITION
from pagoda_operator.observed.world import ObjectRef, ref_of
from pagoda_operator.plan.plan import was_made

log = logging.getLogger(__name__)

OPERATOR = "pagoda-operator"
SCALER = "pagoda-scaler"
"""Field managers: one per duty."""

OWN_MANAGERS = frozenset({OPERATOR, SCALER})
INVALID = 422
CORRECTIONS = 3
CORRECTIONS_WITHIN_S = 600.0
"""So often an edit of one object is undone before it is taken for somebody's will that will not go away."""

Json = dict[str, Any]


class Writer:
    def __init__(self, api: Api, children: Store, pods: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._children = children
        self._pods = pods
        self._clock = clock
        self._corrections: defaultdict[ObjectRef, deque[float]] = defaultdict(lambda: deque(maxlen=CORRECTIONS))

    async def look(self, ref: ObjectRef) -> Json | None:
        """A fresh read of one object, also of one that is not ours. Informers see only ours."""
        try:
            return trim.child(await self._api.get(path_of(ref)))
        except NotFound:
            return None

    async def apply(self, document: Mapping[str, Any]) -> str | None:
        """Returns what the API server refused, in its words."""
        ref = ref_of(document)
        live = self._children.get(ref)
        if live is not None and ref.kind == "Deployment" and "replicas" not in document["spec"] and not trim.is_scaled(live):
            # The first apply without replicas would let go of the number that the creating one wrote, and the API server would put 1.
            refused = await self.scale(ref, live["spec"].get("replicas", 1))
        else:
            refused = None
        return refused or await self._apply(ref, document, OPERATOR)

    async def scale(self, ref: ObjectRef, replicas: int) -> str | None:
        """Only spec.replicas, under its own field manager."""
        live = self._children.get(ref)
        if live is None:
            return None
        metadata = {"name": ref.name, "namespace": ref.namespace, "uid": live["metadata"]["uid"]}
        document = {"apiVersion": live["apiVersion"], "kind": ref.kind, "metadata": metadata, "spec": {"replicas": replicas}}
        return await self._apply(ref, document, SCALER)

    async def delete(self, ref: ObjectRef) -> str | None:
        live = self._children.get(ref)
        if live is None or not was_made(live):
            return None
        options = {"propagationPolicy": "Background", "preconditions": {"uid": live["metadata"]["uid"]}}
        try:
            await self._api.call("DELETE", path_of(ref), body=options)
        except (NotFound, Conflict):
            return None  # gone, or another object has its name now: the watch will tell
        except Refused as error:
            return error.message
        return None

    async def status(self, document: Mapping[str, Any], status: Mapping[str, Any]) -> Json | None:
        """Returns the object with its new status; None: it is gone, or another one has its name."""
        metadata = document["metadata"]
        body = {
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "status": dict(status),
        }
        # status is ours alone: what somebody wrote over it is put back. Fields of theirs that we leave out stay; nobody reads them.
        path, query = MODELS.path(metadata["namespace"], metadata["name"], "status"), {"fieldManager": OPERATOR, "force": "true"}
        try:
            return await self._api.call("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)
        except (NotFound, Conflict):
            return None

    async def gate(self, pod: Mapping[str, Any], routed: bool, moment: str) -> Json | None:
        """Sets the pod's readiness gate. Returns the trimmed pod; None: it is gone."""
        metadata = pod["metadata"]
        condition = {"type": ROUTED_CONDITION, "status": "True" if routed else "False", "lastTransitionTime": moment}
        condition["reason"] = "Routed" if routed else "NotAcknowledged"
        body = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
        path = PODS.path(metadata["namespace"], metadata["name"], "status")
        try:
            answer = await self._api.call("PATCH", path, query={"fieldManager": OPERATOR}, body=body, content_type=STRATEGIC_PATCH)
        except (NotFound, Conflict):
            return None
        return trim.pod(answer)

    async def create_secret(self, secret: Mapping[str, Any]) -> bool:
        """True: created; False: one of this name exists, and stays as it is."""
        try:
            await self._api.call("POST", SECRETS.path(secret["metadata"]["namespace"]), query={"fieldManager": OPERATOR}, body=dict(secret))
        except Conflict:
            return False
        return True

    async def _apply(self, ref: ObjectRef, document: Mapping[str, Any], manager: str) -> str | None:
        try:
            await self._patch(ref, document, manager, force=False)
        except Conflict as error:
            if not error.managers:
                raise Unavailable(f"{ref}: {error.message}") from error  # another object has its name now: the watch will tell
            if not self._may_correct(ref, error):
                return error.message
            log.info("%s: taking back a field that was edited: %s", ref, error.message)
            try:
                await self._patch(ref, document, manager, force=True)
            except ApiError as second:
                return second.message
        except Refused as error:
            if error.code != INVALID or manager != OPERATOR or not self._may_count(ref):
                return error.message
            return await self._overwrite(ref, document)
        except NotFound as error:
            return error.message
        return None

    async def _overwrite(self, ref: ObjectRef, document: Mapping[str, Any]) -> str | None:
        """Somebody's edit and our apply together are invalid, such as two ports of one name: an apply never removes what another manager
        added to a list. A merge patch puts our lists in the place of what is there."""
        live = self._children.get(ref)
        if live is None:
            return None
        log.info("%s: putting back what an edit made invalid", ref)
        body = {**document, "metadata": {**document["metadata"], "uid": live["metadata"]["uid"]}}
        try:
            answer = await self._api.call("PATCH", path_of(ref), query={"fieldManager": OPERATOR}, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            return error.message
        self._children.put(ref, trim.child(answer))
        return None

    async def _patch(self, ref: ObjectRef, document: Mapping[str, Any], manager: str, *, force: bool) -> None:
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        answer = await self._api.call("PATCH", path_of(ref), query=query, body=dict(document), content_type=APPLY_PATCH)
        self._children.put(ref, trim.child(answer))

    def _may_correct(self, ref: ObjectRef, error: Conflict) -> bool:
        """Edits (kubectl edit, set, scale) are undone, a few times; what another applier declares as its own is not ours to take."""
        if all(manager in OWN_MANAGERS for manager, _ in error.managers):
            return True
        if not all(edited or manager in OWN_MANAGERS for manager, edited in error.managers):
            return False
        return self._may_count(ref)

    def _may_count(self, ref: ObjectRef) -> bool:
        """Whether an edit of this object may be undone once more."""
        past, now = self._corrections[ref], self._clock()
        if len(past) == CORRECTIONS and now - past[0] < CORRECTIONS_WITHIN_S:
            return False
        past.append(now)
        return True
