"""Whether a status is worth writing. Pure."""

from collections.abc import Mapping
from typing import Any

MOMENTS = frozenset({"lastTransitionTime", "beat"})


def same_status(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """But for moments: two looks at the same world differ in them alone."""
    return bool(_without_moments(old) == _without_moments(new))


def _without_moments(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_moments(each) for key, each in value.items() if key not in MOMENTS}
    return [_without_moments(each) for each in value] if isinstance(value, list | tuple) else value
