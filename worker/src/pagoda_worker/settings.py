"""The worker's environment variables, parsed once into frozen settings. Knows no torch and starts nothing.

Called by __main__. Whatever is wrong is a ConfigError of one line that names the variable, what it said and what it may say.
"""

import difflib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pagoda_worker.config import Device, EngineConfig
from pagoda_worker.engine_settings import parse_engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.logs import LEVELS
from pagoda_worker.sources import resolve_source

OWN_NAMES = frozenset(
    {
        "PAGODA_MODEL_NAME",
        "PAGODA_MODEL_SOURCE",
        "PAGODA_ENGINE",
        "PAGODA_DEVICE",
        "PAGODA_BIND_HOST",
        "PAGODA_GRPC_PORT",
        "PAGODA_HTTP_PORT",
        "PAGODA_SESSION_TOKEN",
        "PAGODA_CPUS",
        "PAGODA_MEMORY_BYTES",
        "PAGODA_DRAIN_S",
        "PAGODA_STALL_S",
    }
)
TOLERATED_NAMES = frozenset(
    {"PAGODA_HOME", "PAGODA_RUN_ID", "PAGODA_REQUIRE_ALL", "PAGODA_KUBE_BIN", "PAGODA_LOG_LEVEL", "PAGODA_POD_NAME"}
)
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")
Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """What one worker is told at start."""

    model_name: str
    """metadata.name of the InferenceModel; what routers call the model."""
    engine: EngineConfig
    bind_host: str = "127.0.0.1"
    grpc_port: int = 9000
    """0: any free port, named in the log."""
    http_port: int = 9001
    session_token: str = ""
    """Routers must send it in Hello. Empty only on a loopback bind."""
    drain_s: float = 30.0
    """After SIGTERM running requests may go on this long, then they end with SHUTDOWN."""
    stall_s: float = 20.0
    """Without moving tokens or a heartbeat for this long: not ready; twice this long: the engine is restarted."""
    pod_name: str = ""
    log_level: str = "info"


def parse_settings(env: Mapping[str, str]) -> WorkerSettings:
    """Raises ConfigError."""
    _refuse_unknown(env)
    host = env.get("PAGODA_BIND_HOST", "127.0.0.1")
    token = env.get("PAGODA_SESSION_TOKEN", "")
    if not token and not is_loopback(host):
        raise ConfigError(f"PAGODA_BIND_HOST {host} is reachable from other machines: set PAGODA_SESSION_TOKEN, or bind 127.0.0.1")
    return WorkerSettings(
        model_name=_required(env, "PAGODA_MODEL_NAME", "the InferenceModel's metadata.name"),
        engine=parse_engine(
            env.get("PAGODA_ENGINE", "{}"),
            model_dir=resolve_source(_required(env, "PAGODA_MODEL_SOURCE", "builtin://tiny or file:///absolute/folder")),
            device=_one_of(env, "PAGODA_DEVICE", "auto", DEVICES),
            threads=_optional_whole(env, "PAGODA_CPUS", lowest=1),
            memory_bytes=_optional_whole(env, "PAGODA_MEMORY_BYTES", lowest=1 << 20),
        ),
        bind_host=host,
        grpc_port=_port(env, "PAGODA_GRPC_PORT", 9000),
        http_port=_port(env, "PAGODA_HTTP_PORT", 9001),
        session_token=token,
        drain_s=_seconds(env, "PAGODA_DRAIN_S", 30.0, lowest=0.0),
        stall_s=_seconds(env, "PAGODA_STALL_S", 20.0, lowest=0.5),
        pod_name=env.get("PAGODA_POD_NAME", ""),
        log_level=_one_of(env, "PAGODA_LOG_LEVEL", "info", LEVELS),
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_unknown(env: Mapping[str, str]) -> None:
    known = OWN_NAMES | TOLERATED_NAMES
    for name in sorted(env):
        if name.startswith("PAGODA_") and name not in known:
            closest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{name} is not a setting of the worker; the closest is {closest}")


def _required(env: Mapping[str, str], name: str, example: str) -> str:
    value = env.get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set: write {example}")
    return value


def _one_of(env: Mapping[str, str], name: str, default: Choice, choices: tuple[Choice, ...]) -> Choice:
    value = env.get(name, default)
    for choice in choices:
        if choice == value:
            return choice
    raise ConfigError(f"{name} is {value!r}; it may be {', '.join(choices)}")


def _optional_whole(env: Mapping[str, str], name: str, *, lowest: int) -> int | None:
    return _whole(env[name], name, lowest, None) if env.get(name) else None


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    return _whole(env.get(name, str(default)), name, 0, 65535)


def _whole(text: str, name: str, lowest: int, highest: int | None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest or (highest is not None and value > highest):
        span = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
        raise ConfigError(f"{name} is {text!r}; it must be a whole number {span}")
    return value


def _seconds(env: Mapping[str, str], name: str, default: float, *, lowest: float) -> float:
    text = env.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not lowest <= value <= 86_400.0:
        raise ConfigError(f"{name} is {text!r}; it must be seconds from {lowest:g} to 86400")
    return value
