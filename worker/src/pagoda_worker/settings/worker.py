"""The worker's environment variables, parsed once into frozen settings. Knows no torch and starts nothing.

Called by __main__. Whatever is wrong is a ConfigError of one line that names the variable, what it said and what it may say.
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagoda_worker.config import Device, EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.logs import LEVELS
from pagoda_worker.settings.adapters import DeclaredAdapter, adapter_folder, parse_adapters
from pagoda_worker.settings.engine import parse_engine
from pagoda_worker.settings.environment import absolute_folder, one_of, optional_whole, port, refuse_unknown, required, seconds
from pagoda_worker.settings.model_cache import DEFAULT_REVISION
from pagoda_worker.settings.sources import resolve_source

OWN_NAMES = frozenset(
    {
        "PAGODA_MODELS",
        "PAGODA_AWAKE_BYTES",
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
        "PAGODA_SELF_TEST",
        "PAGODA_MODEL_REVISION",
        "PAGODA_MODEL_CACHE",
        "PAGODA_ADAPTERS",
        "PAGODA_DRAFT_SOURCE",  # of PAGODA_ENGINE, for the fetch step
    }
)
MODEL_FIELDS = {
    "name": "PAGODA_MODEL_NAME",
    "source": "PAGODA_MODEL_SOURCE",
    "engine": "PAGODA_ENGINE",
    "grpcPort": "PAGODA_GRPC_PORT",
    "httpPort": "PAGODA_HTTP_PORT",
}
"""Of one entry of PAGODA_MODELS: the variable that says it for a worker of one model."""
SWITCH = ("on", "off")
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """What one worker is told at start."""

    model_name: str
    """metadata.name of the InferenceModel; what routers call the model."""
    engine: EngineConfig
    adapters: tuple[DeclaredAdapter, ...] = ()
    """Of the manifest; `engine` has their folders."""
    model_cache: Path | None = None
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
    refuse_unknown(env, OWN_NAMES, "worker")
    host = env.get("PAGODA_BIND_HOST", "127.0.0.1")
    token = env.get("PAGODA_SESSION_TOKEN", "")
    if not token and not is_loopback(host):
        raise ConfigError(f"PAGODA_BIND_HOST {host} is reachable from other machines: set PAGODA_SESSION_TOKEN, or bind 127.0.0.1")
    cache = absolute_folder(env, "PAGODA_MODEL_CACHE")
    declared = parse_adapters(env.get("PAGODA_ADAPTERS", "[]"))
    return WorkerSettings(
        model_name=required(env, "PAGODA_MODEL_NAME", "the InferenceModel's metadata.name"),
        adapters=tuple(declared),
        model_cache=cache,
        engine=parse_engine(
            env.get("PAGODA_ENGINE", "{}"),
            model_dir=resolve_source(
                required(env, "PAGODA_MODEL_SOURCE", "builtin://tiny or file:///absolute/folder"),
                revision=env.get("PAGODA_MODEL_REVISION") or DEFAULT_REVISION,
                cache=cache,
            ),
            cache=cache,
            adapters={each.name: adapter_folder(each.source, revision=each.revision, cache=cache) for each in declared},
            device=one_of(env, "PAGODA_DEVICE", "auto", DEVICES),
            threads=optional_whole(env, "PAGODA_CPUS", lowest=1),
            memory_bytes=optional_whole(env, "PAGODA_MEMORY_BYTES", lowest=1 << 20),
            self_test=one_of(env, "PAGODA_SELF_TEST", "on", SWITCH) == "on",
        ),
        bind_host=host,
        grpc_port=port(env, "PAGODA_GRPC_PORT", 9000),
        http_port=port(env, "PAGODA_HTTP_PORT", 9001),
        session_token=token,
        drain_s=seconds(env, "PAGODA_DRAIN_S", 30.0, lowest=0.0),
        stall_s=seconds(env, "PAGODA_STALL_S", 20.0, lowest=0.5),
        pod_name=env.get("PAGODA_POD_NAME", ""),
        log_level=one_of(env, "PAGODA_LOG_LEVEL", "info", LEVELS),
    )


@dataclass(frozen=True, slots=True)
class SharedDevice:
    """Several models of one worker; each has ports of its own, and is a worker to everybody else."""

    models: list[WorkerSettings]
    awake_bytes: int
    """Weights and KV caches of the models that are awake, together."""


def parse_shared_device(env: Mapping[str, str]) -> SharedDevice | None:
    """PAGODA_MODELS: a JSON list of {"name", "source", "grpcPort", "httpPort"} and, if wanted, "engine". None: it is not set. All other
    variables hold for every model, which reads its weights when it is asked. Raises ConfigError."""
    text = env.get("PAGODA_MODELS")
    if text is None:
        return None
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"PAGODA_MODELS is not JSON: {error}") from error
    if not isinstance(listed, list) or len(listed) < 2 or not all(isinstance(each, dict) for each in listed):
        raise ConfigError("PAGODA_MODELS must be a JSON list of at least two objects")
    for name in (*MODEL_FIELDS.values(), "PAGODA_MODEL_REVISION", "PAGODA_ADAPTERS"):
        if name in env:
            raise ConfigError(f"{name} is set beside PAGODA_MODELS, which says it for each model: leave one of them out")
    models = [_model_of(env, index, each) for index, each in enumerate(listed)]
    if len({each.model_name for each in models}) < len(models):
        raise ConfigError("PAGODA_MODELS names a model twice")
    awake_bytes = optional_whole(env, "PAGODA_AWAKE_BYTES", lowest=1 << 20)
    if awake_bytes is None:
        raise ConfigError("PAGODA_AWAKE_BYTES is not set: with PAGODA_MODELS it bounds weights and KV caches of the models that are awake")
    return SharedDevice(models, awake_bytes)


def _model_of(env: Mapping[str, str], index: int, given: dict[str, Any]) -> WorkerSettings:
    path = f"PAGODA_MODELS[{index}]"
    if unknown := given.keys() - MODEL_FIELDS.keys():
        raise ConfigError(f"{path}.{min(unknown)} is not a field; there are {', '.join(MODEL_FIELDS)}")
    if missing := MODEL_FIELDS.keys() - given.keys() - {"engine"}:
        raise ConfigError(f"{path}.{min(missing)} is missing")
    own = {MODEL_FIELDS[name]: value if isinstance(value, str) and name != "engine" else json.dumps(value) for name, value in given.items()}
    common = {name: value for name, value in env.items() if name not in ("PAGODA_MODELS", "PAGODA_AWAKE_BYTES")}
    try:
        settings = parse_settings({**common, **own})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}", reason=error.reason) from error
    return replace(settings, engine=replace(settings.engine, load="lazy"))


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
