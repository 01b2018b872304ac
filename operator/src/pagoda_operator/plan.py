"""Desired against observed, without I/O: what to apply, what to delete, and why. Level-triggered: only the present counts.

Called every round by the reconcile loop, which carries the plan out through its executor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pagoda_operator.conditions import Reason
from pagoda_operator.errors import InvalidManifest
from pagoda_operator.manifests import Settings
from pagoda_operator.observed import ObjectRef, Observed
from pagoda_operator.spec import InferenceModel


@dataclass(frozen=True, slots=True)
class Conflict:
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    apply: tuple[dict[str, Any], ...]
    """Objects that are missing or differ, whole, in the order to apply them."""
    delete: tuple[ObjectRef, ...]
    reasons: tuple[str, ...]
    """One sentence per change, those of `apply` first: for the event log."""
    models: tuple[InferenceModel, ...]
    """The documents that parsed, oldest first."""
    served_names: Mapping[str, tuple[str, ...]]
    """By `InferenceModel.key`: the names a model really answers to, after older models took theirs."""
    conflicts: Mapping[str, Conflict]
    """By key: NameTaken, ForeignObject. The model's objects are still wanted."""
    invalid: Mapping[str, InvalidManifest]
    """By key: documents that did not parse. Their existing children stay as they are."""

    @property
    def empty(self) -> bool:
        return not self.apply and not self.delete


def plan(documents: Sequence[Mapping[str, Any]], observed: Observed, settings: Settings) -> Plan:
    """`documents` are InferenceModel objects as stored: apiVersion, kind, metadata (name, namespace, uid, creationTimestamp), spec."""
    raise NotImplementedError
