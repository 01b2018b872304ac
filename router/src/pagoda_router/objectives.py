"""What a model promises and what it costs: spec.slo and spec.cost read leniently, and whether one request kept the promise. Pure.

discovery/snapshot.py reads with it, metrics/ judges with it. The operator refuses a bad manifest in words; here, what cannot be read is a
complaint and counts as absent, because a model must not vanish for it.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pagoda_router.http.surface import RequestOutcome
from pagoda_router.usage.amounts import TokenPrices, token_prices

DEFAULT_OBJECTIVE = 0.99
TOKEN_PRICES = ("millionInputUsd", "millionCachedUsd", "millionOutputUsd")

Sli = Literal["availability", "ttft", "tpot"]
SLIS: tuple[Sli, ...] = ("availability", "ttft", "tpot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    ttft_s: float | None = None
    """None: no promise."""
    tpot_s: float | None = None
    objective: float = DEFAULT_OBJECTIVE
    """Share of the requests that shall keep each promise."""


def verdicts(outcome: RequestOutcome, slo: Slo | None) -> Iterator[tuple[Sli, bool]]:
    """(indicator, good) for each that this request says something about; availability needs no threshold.

    The client's own errors and departures say nothing. How fast an answer was is asked of good answers only: a failed one has been counted.
    """
    if outcome.status == 499 or (400 <= outcome.status < 500 and outcome.status != 429):
        return
    good = outcome.status == 200 and bool(outcome.finish_reasons)
    yield "availability", good
    if not good or slo is None:
        return
    if slo.ttft_s is not None and outcome.ttft_s is not None:
        yield "ttft", outcome.ttft_s <= slo.ttft_s
    tpot_s = tpot_of(outcome)
    if slo.tpot_s is not None and tpot_s is not None:
        yield "tpot", tpot_s <= slo.tpot_s


def tpot_of(outcome: RequestOutcome) -> float | None:
    """Seconds per output token after the first, of the longest choice; None with fewer than two."""
    if outcome.ttft_s is None or outcome.last_token_s is None or outcome.longest_completion_tokens < 2:
        return None
    return (outcome.last_token_s - outcome.ttft_s) / (outcome.longest_completion_tokens - 1)


# ---------------------------------------------------------------- reading


def read_slo(spec: Mapping[str, Any], complaints: list[str]) -> Slo | None:
    given = _section(spec, "slo", complaints)
    if given is None:
        return None
    ratio = _read(given, "slo.objective", objective_ratio, complaints)
    return Slo(
        ttft_s=_read(given, "slo.ttft", duration_s, complaints),
        tpot_s=_read(given, "slo.tpot", duration_s, complaints),
        objective=DEFAULT_OBJECTIVE if ratio is None else ratio,
    )


def read_prices(spec: Mapping[str, Any], variants: Sequence[str], complaints: list[str]) -> dict[str, float]:
    """$ per hour of one worker, by variant; empty without spec.cost."""
    cost = _section(spec, "cost", complaints)
    if cost is None:
        return {}
    worker_usd = _read(cost, "cost.workerHourUsd", amount, complaints)
    gpu_usd = _read(cost, "cost.gpuHourUsd", amount, complaints)
    if worker_usd is not None:
        return dict.fromkeys(variants, worker_usd)
    if gpu_usd is None:
        return {}
    usual = _gpus(spec, "spec", 0, complaints)
    entries = spec.get("variants") or []
    own = {entry["name"]: _gpus(entry, f"spec.variants {entry['name']}", usual, complaints) for entry in entries}
    return {variant: gpu_usd * own.get(variant, usual) for variant in variants}


def read_token_prices(spec: Mapping[str, Any], complaints: list[str]) -> TokenPrices | None:
    """What a key's tokens cost; None where spec.cost prices none."""
    cost = _section(spec, "cost", [])
    if cost is None:
        return None
    return token_prices(*(_read(cost, f"cost.{name}", amount, complaints) for name in TOKEN_PRICES))


def _gpus(holder: Mapping[str, Any], where: str, default: int, complaints: list[str]) -> int:
    resources = holder.get("resources")
    given = resources.get("gpus") if isinstance(resources, Mapping) else None
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        complaints.append(f"{where}.resources.gpus {given!r} is no number of GPUs and counts as {default}")
        return default
    return given


def _section(spec: Mapping[str, Any], name: str, complaints: list[str]) -> Mapping[str, Any] | None:
    given = spec.get(name)
    if given is None or isinstance(given, Mapping):
        return given
    complaints.append(f"spec.{name} is no object and is ignored")
    return None


def _read(section: Mapping[str, Any], field: str, parse: Any, complaints: list[str]) -> float | None:
    given = section.get(field.partition(".")[2])
    if given is None:
        return None
    value: float | None = parse(given)
    if value is None:
        complaints.append(f"spec.{field} {str(given)[:40]!r} cannot be read and is ignored")
    return value


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}


def duration_s(value: Any) -> float | None:
    """Such as 500ms, 120s, 5m, 1h30m; None for anything else."""
    text = str(value)
    parts = list(_DURATION.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        return None
    return sum(float(part[1]) * _UNIT_S[part[2]] for part in parts)


def objective_ratio(value: Any) -> float | None:
    """Of "99.5%": more than none and less than all."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(value))
    ratio = float(found[1]) / 100 if found else math.nan
    return ratio if 0 < ratio < 1 else None


def amount(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
