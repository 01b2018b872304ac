"""A LoRA adapter as the router knows it: what a worker tells of one, and one that a manifest declares. Pure data, used by the halves that
know workers and those that know manifests.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """On one worker."""

    name: str
    version: str
    """Of its content; the same files have the same one on every worker."""
    source: str
    rank: int
    size_bytes: int
    resident: bool
    """In a slot of the device: a request need not wait for its copy."""

    @property
    def label(self) -> str:
        """What hashes of its prefixes cover, as the worker's own do."""
        return f"{self.name}@{self.version}"


NO_ADAPTERS: Mapping[str, LoadedAdapter] = {}


@dataclass(frozen=True, slots=True)
class DeclaredAdapter:
    """In a manifest: it exists whether or not a worker runs."""

    name: str
    source: str
