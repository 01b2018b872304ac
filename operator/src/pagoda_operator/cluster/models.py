"""The InferenceModels of the watched namespaces, and which of them holds which name. Fed by kopf's events and by a list of our own.

A list at the start and every ten minutes or so: a deletion that a watch missed is otherwise never heard of.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pagoda_operator.cluster.store import version
from pagoda_operator.errors import InvalidManifest
from pagoda_operator.manifest.spec import InferenceModel, parse
from pagoda_operator.plan.claims import Claims, claim_names
from pagoda_operator.plan.plan import is_served

log = logging.getLogger(__name__)

Document = Mapping[str, Any]
NO_CLAIMS = claim_names(())


class Models:
    def __init__(self, dirty: Callable[[str, str | None], None], namespaces: Collection[str]) -> None:
        """`dirty` gets the namespace and the model's name, or None for what the namespace shares."""
        self._dirty = dirty
        self._namespaces = frozenset(namespaces)
        self._documents: defaultdict[str, dict[str, Document]] = defaultdict(dict)
        self._parsed: dict[tuple[str, str], InferenceModel] = {}
        self._claims: dict[str, Claims] = {}
        self._unclaimed: set[str] = set()
        """Namespaces whose names are to be given out anew, once, however many models came."""
        self._gone: dict[tuple[str, str], int] = {}
        """Versions of those deleted since the last list: a late event must not bring one back."""

    def get(self, namespace: str, name: str) -> Document | None:
        return self._documents.get(namespace, {}).get(name)

    def names(self, namespace: str) -> list[str]:
        return list(self._documents.get(namespace, ()))

    def parsed(self, namespace: str, name: str) -> InferenceModel | None:
        """None: the document is not valid."""
        return self._parsed.get((namespace, name))

    def everything(self) -> list[Document]:
        return [document for documents in self._documents.values() for document in documents.values()]

    def claims(self, namespace: str) -> Claims:
        """Who holds which name. Marks models whose names changed since the last call."""
        if namespace in self._unclaimed:
            self._unclaimed.discard(namespace)
            self._claim(namespace)
        return self._claims.get(namespace, NO_CLAIMS)

    def hear(self, kind: str | None, document: Document) -> None:
        if kind == "DELETED":
            self.remove(document)
        else:
            self.put(document)

    def put(self, document: Document) -> None:
        """Marks what its arrival or change concerns."""
        metadata = document["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        if not self._watches(namespace):
            return
        if not is_served(document):
            self.remove(document)
            return
        old = self.get(namespace, name)
        known = version(old) if old is not None else self._gone.get((namespace, name), -1)
        if version(document) <= known:
            return
        self._documents[namespace][name] = _trimmed(document)
        if old is None or _decides(old) != _decides(document):
            self._parse(namespace, name)
        if old is None or _content(old) != _content(document):
            self._dirty(namespace, name)

    def remember(self, document: Document) -> None:
        """The answer to our own write of its status: nothing to do about it."""
        metadata = document["metadata"]
        old = self.get(metadata["namespace"], metadata["name"])
        if old is not None and version(old) < version(document) and _decides(old) == _decides(document):
            self._documents[metadata["namespace"]][metadata["name"]] = _trimmed(document)

    def remove(self, document: Document) -> None:
        metadata = document["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        old = self.get(namespace, name)
        if old is None or version(old) > version(document):
            return
        self._gone[namespace, name] = version(document)
        del self._documents[namespace][name]
        self._parsed.pop((namespace, name), None)
        self._unclaimed.add(namespace)
        self._dirty(namespace, name)
        self._dirty(namespace, None)

    def keep_only(self, namespace: str | None, present: Collection[tuple[str, str]], at_version: int) -> None:
        """After a list: what it did not show is gone."""
        self._gone.clear()
        for document in self.everything():
            metadata = document["metadata"]
            key = (metadata["namespace"], metadata["name"])
            if namespace in (None, key[0]) and key not in present and version(document) <= at_version:
                log.info("InferenceModel %s/%s is gone; no event told of it", *key)
                self.remove({"metadata": {**metadata, "resourceVersion": str(at_version)}})

    def _watches(self, namespace: str) -> bool:
        return not self._namespaces or namespace in self._namespaces

    def _parse(self, namespace: str, name: str) -> None:
        old = self._parsed.pop((namespace, name), None)
        try:
            new = parse(self._documents[namespace][name])
            self._parsed[namespace, name] = new
        except InvalidManifest:
            new = None
        if old is None or new is None or old.created != new.created or _claimed(old) != _claimed(new):
            self._unclaimed.add(namespace)
            self._dirty(namespace, None)

    def _claim(self, namespace: str) -> None:
        names = self._documents.get(namespace, {})
        models = [self._parsed[namespace, name] for name in names if (namespace, name) in self._parsed]
        invalid = [f"{namespace}/{name}" for name in names if (namespace, name) not in self._parsed]
        before, after = self._claims.get(namespace, NO_CLAIMS), claim_names(models, invalid)
        self._claims[namespace] = after
        for model in models:
            if _claim_of(before, model.key) != _claim_of(after, model.key):
                self._dirty(namespace, model.name)


def _claimed(model: InferenceModel) -> object:
    """All that `claim_names` looks at beside its age."""
    spec = model.spec
    return spec.served_names, [adapter.name for adapter in spec.adapters], spec.routing.draft_model, spec.routing.fallback


def _claim_of(claims: Claims, key: str) -> object:
    return claims.served_names.get(key), claims.conflicts.get(key), claims.unknown.get(key)


def _decides(document: Document) -> object:
    """What plans are made from."""
    metadata = document["metadata"]
    return metadata["uid"], document.get("spec"), metadata.get("creationTimestamp")


def _content(document: Document) -> object:
    """All that a reconcile looks at. The generation is in the status; a wiped status must be written again."""
    return *_content_of_metadata(document), document.get("spec"), document.get("status")


def _content_of_metadata(document: Document) -> tuple[object, ...]:
    metadata = document["metadata"]
    return metadata["uid"], metadata.get("generation"), metadata.get("deletionTimestamp")


def _trimmed(document: Document) -> dict[str, Any]:
    metadata = {key: value for key, value in document["metadata"].items() if key not in ("managedFields", "annotations")}
    return {**document, "metadata": metadata}
