"""
OperatorError
├── InvalidManifest        an InferenceModel that cannot be accepted: carries every problem, not only the first
└── InvalidQuantity        "8", "500m", "48Gi" or "500ms" written some other way

`Problem` names one field and says what to write there instead. The messages are the same as the ones that the CRD makes `kubectl` print.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class OperatorError(Exception):
    """Base of everything that a user's manifest or settings can cause."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One field of a manifest that is wrong. `str()` is the line to show."""

    field: str
    """The path as `kubectl explain` spells it, with list positions: spec.engine.dtype, spec.servedNames[1]."""
    message: str
    """What to write instead; does not repeat the field."""
    given: str = ""
    """What was written, shortened; empty when nothing was, or when showing it does not help."""

    def __str__(self) -> str:
        return f"{self.field}: {self.given} was given: {self.message}" if self.given else f"{self.field}: {self.message}"


class InvalidManifest(OperatorError):
    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = tuple(problems)
        super().__init__(f"InferenceModel {name}: " + "; ".join(map(str, self.problems)))


class InvalidQuantity(OperatorError):
    pass
