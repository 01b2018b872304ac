"""The committed parameters of the simulator's workloads: workloads.toml as frozen records. Pure but for reading that one file.

Knows nothing of workers or policies. Read by demand.py and run.py.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from pagoda_bench.errors import SettingsError

FILE = Path(__file__).parent / "workloads.toml"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal, cut at both ends."""

    median: float
    sigma: float
    """Of the natural logarithm."""
    least: float
    most: float

    def draw(self, rng: Random) -> float:
        return min(self.most, max(self.least, self.median * rng.lognormvariate(0.0, self.sigma)))

    def tokens(self, rng: Random) -> int:
        return round(self.draw(rng))


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of request among those of a workload."""

    share: float
    prompt: Lengths
    """Each request's own tokens, beyond a prefix and earlier turns."""
    output: Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    name: str
    about: str
    sources: tuple[str, ...]
    load: float
    """Part of the fleet's capacity that is asked for when nothing is cached."""
    gaps_cv: float
    """Coefficient of variation of the gaps between arrivals: 1 is a Poisson process, more is bursts (Gamma-distributed gaps)."""
    parts: tuple[Part, ...]
    times_longer: float = 1.0
    """Than the duration that is asked for: where a steady state comes late."""
    tenants: int = 1
    zipf: float = 0.0
    tenant_shares: tuple[float, ...] = ()
    """Of requests; empty: by Zipf's law."""
    prefix: Lengths | None = None
    """A system prompt of each tenant's own. None: none."""
    turns: Lengths | None = None
    think_s: Lengths | None = None
    """From the end of an answer to the next turn."""

    def shares(self) -> list[float]:
        """Of requests, or conversations, by tenant."""
        return list(self.tenant_shares) or [1 / (rank + 1) ** self.zipf for rank in range(self.tenants)]


@dataclass(frozen=True, slots=True)
class Parameters:
    workloads: Mapping[str, Workload]
    tuning_seeds: tuple[int, ...]
    unseen_seeds: tuple[int, ...]


def read_parameters(path: Path = FILE) -> Parameters:
    """Raises SettingsError with the name of what is wrong."""
    content = tomllib.loads(path.read_text())
    seeds = content.pop("seeds")
    workloads: dict[str, Workload] = {}
    for name, table in content.items():
        inherited = workloads.get(table.pop("like", ""))
        try:
            workloads[name] = _workload(name, table, inherited)
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"{path.name}, workload {name}: {error}") from error
    return Parameters(workloads, tuple(seeds["tuning"]), tuple(seeds["unseen"]))


def _workload(name: str, table: dict[str, Any], inherited: Workload | None) -> Workload:
    if unknown := set(table) - {field.name for field in fields(Workload)}:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    for key in ("prefix", "turns", "think_s"):
        if key in table:
            table[key] = Lengths(**table[key])
    if "parts" in table:
        table["parts"] = tuple(Part(part["share"], Lengths(**part["prompt"]), Lengths(**part["output"])) for part in table["parts"])
    elif inherited is not None:
        table["parts"] = inherited.parts
    for key in ("sources", "tenant_shares"):
        table[key] = tuple(table.get(key, ()))
    workload = Workload(name=name, **table)
    if abs(sum(part.share for part in workload.parts) - 1) > 1e-9:
        raise ValueError("the shares of its parts are to add up to 1")
    return workload
