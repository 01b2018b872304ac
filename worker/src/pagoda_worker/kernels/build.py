"""One way to compile a kernel, as `ahead.py` does it. Pure data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    name: str
    kernel: Any
    types: Mapping[str, str]
    """Of arguments that are not constants."""
    constants: Mapping[str, Any]
    warps: int
    stages: int = 3
    least_capability: int = 0
    """That the kernel can be compiled for."""
