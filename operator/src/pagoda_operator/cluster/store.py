"""What an informer knows: trimmed objects by ref, indexed by the model that they belong to, so that one reconcile sees only its own.

Filled by informers and by the answers to our own writes; the newer resource version wins, whichever way it came.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda_operator.labels import LABEL_MODEL
from pagoda_operator.observed.world import ObjectRef

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Change:
    ref: ObjectRef
    before: Object | None
    after: Object | None

    @property
    def owner(self) -> str:
        """Name of the model it belongs to; "": what its namespace shares."""
        return model_of(self.after or self.before or {})


@dataclass(slots=True)
class Store:
    carry: Callable[[Object, Object], Object] = lambda old, new: new
    """What is kept of the older of two when a newer one comes, in the newer one."""
    _objects: dict[ObjectRef, Object] = field(default_factory=dict)
    _by_owner: defaultdict[tuple[str, str], set[ObjectRef]] = field(default_factory=lambda: defaultdict(set))

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, ref: ObjectRef) -> Object | None:
        return self._objects.get(ref)

    def of(self, namespace: str, model: str) -> dict[ObjectRef, Object]:
        """Those of one model; model "": those that a namespace shares."""
        return {ref: self._objects[ref] for ref in self._by_owner.get((namespace, model), ())}

    def everything(self) -> Collection[tuple[ObjectRef, Object]]:
        return self._objects.items()

    def put(self, ref: ObjectRef, new: Object) -> Change | None:
        """None when it is not newer than what is known, or the same but for its resource version."""
        old = self._objects.get(ref)
        if old is not None and version(new) <= version(old):
            return None
        if old is not None:
            new = self.carry(old, new)
        if old is not None and model_of(old) != model_of(new):
            self._disown(ref, old)
        self._objects[ref] = new
        self._by_owner[ref.namespace, model_of(new)].add(ref)
        return None if old is not None and _same(old, new) else Change(ref, old, new)

    def remove(self, ref: ObjectRef, at_version: int) -> Change | None:
        """None when it is not known, or is known to be newer than its removal: made again meanwhile."""
        old = self._objects.get(ref)
        if old is None or version(old) > at_version:
            return None
        del self._objects[ref]
        self._disown(ref, old)
        return Change(ref, old, None)

    def _disown(self, ref: ObjectRef, old: Object) -> None:
        """Nothing is left of an owner without objects: models come and go for years."""
        owner = ref.namespace, model_of(old)
        self._by_owner[owner].discard(ref)
        if not self._by_owner[owner]:
            del self._by_owner[owner]

    def keep_only(self, kind: str, namespace: str | None, present: Collection[ObjectRef], at_version: int) -> Iterable[Change]:
        """After a list: what it did not show is gone."""
        scope = [ref for ref in self._objects if ref.kind == kind and namespace in (None, ref.namespace)]
        removed = (self.remove(ref, at_version) for ref in scope if ref not in present)
        return [change for change in removed if change is not None]


def version(item: Object) -> int:
    """NOTE: resource versions are promised to be comparable only from Kubernetes 1.35 on; every API server on etcd makes them so."""
    return int(item["metadata"].get("resourceVersion") or 0)


def model_of(item: Object) -> str:
    labels = (item.get("metadata") or {}).get("labels") or {}
    return str(labels.get(LABEL_MODEL, ""))


def _same(old: Object, new: Object) -> bool:
    if old.keys() != new.keys():
        return False
    before, after = old["metadata"], new["metadata"]
    return (
        all(old[key] == new[key] for key in old if key != "metadata")
        and before.keys() == after.keys()
        and all(before[key] == after[key] for key in before if key != "resourceVersion")
    )
