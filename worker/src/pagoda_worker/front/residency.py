"""Which of several models may be awake on one device: the least recently used idle one makes room for one that is asked. Pure; no clock.

Asked by residents.py whenever something changed, once for each move.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PATIENCE_S = 2.0
"""So long busy models may keep an asked one waiting; then one of them takes nothing new until it has slept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentView:
    name: str
    needs_bytes: int
    """Awake: weights and KV cache."""
    awake: bool
    running: int
    """Requests that the engine has."""
    waits_since_s: float | None
    """When the first of the requests that wait here came; None: none does."""
    used_at_s: float
    """When a request last came or ended."""
    held: bool = False
    """Takes nothing new: it was told to make room."""


@dataclass(frozen=True, slots=True)
class Wake:
    name: str


@dataclass(frozen=True, slots=True)
class Sleep:
    name: str


@dataclass(frozen=True, slots=True)
class Hold:
    """New requests of it wait from here on, so that those that run end and it can sleep."""

    name: str


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody who came before its own requests needs its room any more."""

    name: str


Move = Wake | Sleep | Hold | Release


def next_move(models: Sequence[ResidentView], budget_bytes: int, now_s: float, patience_s: float = PATIENCE_S) -> Move | None:
    """None: nothing to do until something changes, or until patience ends.

    The sleeping model whose request came first is served first, and nobody overtakes it: fair by arrival, and bounded by patience and the
    longest request that runs. A model with requests in the engine never sleeps.
    """
    asked = min((each for each in models if not each.awake and each.waits_since_s is not None), key=_turn, default=None)
    for each in models:
        if each.held and (asked is None or (each.waits_since_s is not None and _turn(each) < _turn(asked))):
            return Release(each.name)
    if asked is None:
        return None
    awake = [each for each in models if each.awake]
    lacking = asked.needs_bytes + sum(each.needs_bytes for each in awake) - budget_bytes
    if lacking <= 0:
        return Wake(asked.name)
    for each in sorted(awake, key=lambda each: (not each.held, each.used_at_s)):
        if each.running == 0 and (each.held or each.waits_since_s is None):
            return Sleep(each.name)
    lacking -= sum(each.needs_bytes for each in awake if each.held)
    assert asked.waits_since_s is not None
    if lacking > 0 and now_s - asked.waits_since_s >= patience_s:
        free = [each for each in awake if not each.held]
        return Hold(min(free, key=lambda each: each.used_at_s).name) if free else None
    return None


def _turn(view: ResidentView) -> tuple[float, str]:
    assert view.waits_since_s is not None
    return view.waits_since_s, view.name
