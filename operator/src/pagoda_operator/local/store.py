"""The objects that users submitted, with their status, and this machine's choices: what the API server keeps in a cluster.

Owns state.json. Knows nothing of plans and processes. Called by supervisor.py.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pagoda_operator.conditions import rfc3339
from pagoda_operator.local.errors import Unwritable
from pagoda_operator.local.files import write_json
from pagoda_operator.local.machine import Choices

VERSION = 1


class Outcome(StrEnum):
    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Stored:
    document: dict[str, Any]
    outcome: Outcome


def accept(submitted: Mapping[str, Any], existing: Mapping[str, Any] | None, *, uid: str, now: datetime) -> Stored:
    """What is stored after a submission. A generation counts changes of the spec, as the API server's does. Pure."""
    metadata = {**submitted["metadata"], "namespace": submitted["metadata"].get("namespace", "default")}
    base = {"apiVersion": submitted["apiVersion"], "kind": submitted["kind"]}
    if existing is None:
        metadata |= {"uid": uid, "generation": 1, "creationTimestamp": rfc3339(now)}
        return Stored({**base, "metadata": metadata, "spec": dict(submitted["spec"])}, Outcome.CREATED)
    before = existing["metadata"]
    metadata |= {key: before[key] for key in ("uid", "generation", "creationTimestamp")}
    if submitted["spec"] != existing["spec"]:
        metadata["generation"] += 1
    outcome = Outcome.UNCHANGED if submitted["spec"] == existing["spec"] and metadata == before else Outcome.CONFIGURED
    return Stored({**base, "metadata": metadata, "spec": dict(submitted["spec"]), "status": existing.get("status", {})}, outcome)


class ObjectStore:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.objects: dict[str, dict[str, Any]] = {}
        """By metadata.name; one machine has one namespace."""
        self.choices = Choices()

    def load(self) -> None:
        """Raises ValueError with one sentence when the file is not ours."""
        if not self._path.exists():
            return
        try:
            state = json.loads(self._path.read_text())
            if state["version"] != VERSION:
                raise ValueError(f"it is of version {state['version']}, this program reads {VERSION}")
            self.objects = {document["metadata"]["name"]: document for document in state["objects"]}
            self.choices = Choices(**state["choices"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path} cannot be read ({error}): run `pagoda down --purge`, then `pagoda up` again") from error

    def save(self) -> None:
        write_json(self._path, {"version": VERSION, "choices": asdict(self.choices), "objects": list(self.objects.values())})

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What changes within is on disk afterwards, or did not happen: Unwritable."""
        objects, choices = dict(self.objects), self.choices
        try:
            yield
            self.save()
        except OSError as error:
            self.objects, self.choices = objects, choices
            raise Unwritable(self._path.parent, error) from error

    def submit(self, submitted: Mapping[str, Any], now: datetime) -> Outcome:
        name = submitted["metadata"]["name"]
        stored = accept(submitted, self.objects.get(name), uid=str(uuid.uuid4()), now=now)
        self.objects[name] = stored.document
        return stored.outcome
