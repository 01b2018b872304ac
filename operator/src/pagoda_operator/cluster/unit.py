"""One unit of reconciling, a namespace's shared objects or one model, as the executor that reconcile.py drives.

Lives from one reconcile of its key to the next only to remember what was refused and which foreign objects hold wanted names.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda_operator.cluster.apply import Writer
from pagoda_operator.cluster.observe import Observer
from pagoda_operator.cluster.store import Store
from pagoda_operator.observed.world import ObjectRef, Observed, ref_of
from pagoda_operator.plan.plan import Plan, is_ours


@dataclass(frozen=True, slots=True, order=True)
class Key:
    namespace: str
    model: str
    """"": what the namespace shares."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.model}" if self.model else f"namespace {self.namespace}"


@dataclass(slots=True)
class Unit:
    key: Key
    observer: Observer
    writer: Writer
    children: Store
    shared: "Unit | None" = None
    """The namespace's unit: what was refused there concerns its models too."""
    accounts_applied: Callable[[], Awaitable[None]] | None = None
    """Called between the accounts and what needs them."""
    refused: dict[ObjectRef, str] = field(default_factory=dict)
    """In this reconcile."""
    refused_before: dict[ObjectRef, str] = field(default_factory=dict)
    """In the last whole one."""
    looked_up: dict[ObjectRef, Mapping[str, Any]] = field(default_factory=dict)
    writes: int = 0

    async def observe(self) -> Observed:
        blocked = {**(self.shared.refused_before if self.shared else {}), **self.refused}
        return self.observer.look(self.key.namespace, self.key.model, self.looked_up, blocked)

    async def apply(self, wanted: Plan) -> None:
        """Each object by itself: what is refused of one does not stop the others. Raises when the API server cannot be reached."""
        accounts_pending = self.accounts_applied is not None
        for document in wanted.apply:
            if accounts_pending and self.accounts_applied is not None and document["kind"] != "ServiceAccount":
                await self.accounts_applied()
                accounts_pending = False
            ref = ref_of(document)
            if await self._is_free(ref):
                self.writes += 1
                if told := await self.writer.apply(document):
                    self.refused[ref] = told
        for ref in wanted.delete:
            self.writes += 1
            if told := await self.writer.delete(ref):
                self.refused[ref] = told

    async def scale(self, ref: ObjectRef, replicas: int) -> bool:
        self.writes += 1
        told = await self.writer.scale(ref, replicas)
        if told is not None:
            self.refused[ref] = told
        return told is None

    @property
    def looked_up_foreign(self) -> bool:
        return any(not is_ours(live) for live in self.looked_up.values())

    def start(self) -> None:
        """A reconcile begins: what is foreign is looked at anew, what was refused is tried again."""
        self.writes, self.looked_up, self.refused = 0, {}, {}

    def finish(self) -> bool:
        """Returns whether anything else was refused than before."""
        changed, self.refused_before = self.refused != self.refused_before, dict(self.refused)
        return changed

    async def _is_free(self, ref: ObjectRef) -> bool:
        """Before creating: informers show only what is ours, so a foreign object of that name is seen only by looking."""
        if ref in self.looked_up:
            return is_ours(self.looked_up[ref])
        if self.children.get(ref) is not None:
            return True
        live = await self.writer.look(ref)
        if live is None:
            return True
        self.looked_up[ref] = live
        if is_ours(live):
            self.children.put(ref, live)
            return True
        return False
