"""Reading environment variables strictly: a wrong value is a ConfigError of one line: the variable, what it said and what it may say.

Called by the settings of the worker and of the fetch step.
"""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

from pagoda_worker.errors import ConfigError

TOLERATED_NAMES = frozenset(
    {"PAGODA_HOME", "PAGODA_RUN_ID", "PAGODA_REQUIRE_ALL", "PAGODA_KUBE_BIN", "PAGODA_LOG_LEVEL", "PAGODA_POD_NAME"}
)
Choice = TypeVar("Choice", bound=str)


def refuse_unknown(env: Mapping[str, str], known: Collection[str], program: str) -> None:
    for name in sorted(env):
        if name.startswith("PAGODA_") and name not in known and name not in TOLERATED_NAMES:
            closest = difflib.get_close_matches(name, sorted({*known, *TOLERATED_NAMES}), n=1, cutoff=0.0)[0]
            raise ConfigError(f"{name} is not a setting of the {program}; the closest is {closest}")


def absolute_folder(env: Mapping[str, str], name: str) -> Path | None:
    """None: not set."""
    text = env.get(name, "")
    if text and not Path(text).is_absolute():
        raise ConfigError(f"{name} is {text!r}; it must be an absolute folder, such as /models")
    return Path(text) if text else None


def required(env: Mapping[str, str], name: str, example: str) -> str:
    value = env.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set: write {example}")
    return value


def one_of(env: Mapping[str, str], name: str, default: Choice, choices: tuple[Choice, ...]) -> Choice:
    value = env.get(name, default)
    for choice in choices:
        if choice == value:
            return choice
    raise ConfigError(f"{name} is {value!r}; it may be {', '.join(choices)}")


def optional_whole(env: Mapping[str, str], name: str, *, lowest: int) -> int | None:
    return whole(env[name], name, lowest, None) if env.get(name) else None


def port(env: Mapping[str, str], name: str, default: int) -> int:
    return whole(env.get(name, str(default)), name, 0, 65535)


def whole(text: str, name: str, lowest: int, highest: int | None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest or (highest is not None and value > highest):
        span = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
        raise ConfigError(f"{name} is {text!r}; it must be a whole number {span}")
    return value


def seconds(env: Mapping[str, str], name: str, default: float, *, lowest: float) -> float:
    text = env.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not lowest <= value <= 86_400.0:
        raise ConfigError(f"{name} is {text!r}; it must be seconds from {lowest:g} to 86400")
    return value
