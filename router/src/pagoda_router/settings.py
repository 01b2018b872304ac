"""The router process's settings: PAGODA_* environment variables, parsed once and frozen. Knows no fleet; called by __main__ only."""

import difflib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pagoda_router.errors import ConfigError
from pagoda_router.http.cors import parse_origins
from pagoda_router.setting_values import (
    database_url,
    factor,
    headers,
    http_url,
    path,
    port,
    redis_url,
    seconds,
    share,
    switch,
    timeout,
    variable_of,
    whole,
)

TOLERATED = frozenset({"PAGODA_HOME", "PAGODA_RUN_ID", "PAGODA_REQUIRE_ALL", "PAGODA_KUBE_BIN", "PAGODA_LOG_LEVEL", "PAGODA_POD_NAME"})
"""Set by supervisors and CI for every process; the last two are read here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSettings:
    """Each field is PAGODA_<NAME>."""

    bind_host: str = "127.0.0.1"
    """Of both listeners. Beyond loopback needs an API key."""
    http_port: int = 8000
    """/v1, /tokenize, /admin/v1, console, probes, metrics. 0: any free port."""
    reuse_port: bool = False
    """Other routers on this machine listen on http_port too (SO_REUSEPORT), to use more cores: the kernel gives each new connection to one
    of them. Each has an internal port, metrics and a pod_name of its own. Off by default, when a port that is taken is a mistake."""
    internal_port: int = 8001
    """/internal/v1/fleet and probes, for the operator. 0: any free port."""
    internal_token: str | None = None
    """Bearer of /internal. None: open on loopback, closed beyond it."""
    session_token: str = ""
    """Shown to workers in Hello; they require it unless they listen on loopback."""
    discovery: Literal["file", "kubernetes"] = "file"
    """Where models and workers are found: in fleet_file, or by the API server of the cluster (KUBECONFIG, else the pod's account)."""
    namespace: str = ""
    """Of the models and workers; with discovery kubernetes only."""
    fleet_file: Path | None
    """fleet.json, replaced by rename; may appear after the router. With discovery file only."""
    cache_dir: Path
    """Tokenizers and chat templates by content hash, and what each model last described; survives restarts."""
    api_key: str | None = None
    """An admin key that is in no database: with it, keys are needed. None: open on loopback, and keys only say whose a request is."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages may call /v1 from a browser: origins such as https://chat.example.org with commas between, or *. None by default."""
    database: str | None = field(default=None, repr=False)
    """Of keys and usage: postgresql://…, which routers on several machines share, or the path of a SQLite file. None: see key_database."""
    redis: str | None = field(default=None, repr=False)
    """redis://…, rediss://… or unix://…, where routers that share a database share their keys' limits too. None: each has its own."""
    max_body_bytes: int = 10 * 2**20
    max_queue_tokens: int = 200_000
    """Prompt + predicted output of what may wait for one model; about a minute of a small GPU's work. A manifest's
    routing.maxQueueTokens overrides it."""
    queue_timeout_s: float = 60.0
    """Longest wait for a place on a worker before a request is refused with Retry-After. Waiting for a worker to come at all is
    bounded by a manifest's routing.wakeTimeout."""
    max_queue_requests: int = 4096
    """Requests that may wait for one model, however small: each costs its text in memory."""
    throughput_queue_timeout_s: float = 300.0
    """Longest wait of a throughput request: half of what OpenAI's client waits by default, as a batch has nobody who reads along."""
    promote_after_s: float = 30.0
    """Age from which waiting throughput requests get an eighth of the tokens that start, although latency requests wait too."""
    waves: bool = False
    """While workers are full, requests of similar predicted length go together. Off: it pays nothing here
    (docs/decisions/waves-are-off.md)."""
    first_token_timeout_s: float = 300.0
    """From a worker's having a request to its first token: its queue there, waking, prefill. Past it the worker counts as lost to the
    request."""
    next_token_timeout_s: float = 60.0
    """The same between two batches of tokens."""
    retry_share: float = 0.1
    """Of the last minute's requests, those that may be tried again before their first token. 0: none."""
    replay_share: float = 1.0
    """Of the last minute's requests, or of those in flight where they are more, those whose answer may go on on another worker. 0: none."""
    hedge_factor: float = 0.0
    """A request whose first token takes so many times as long as predicted is sent to a second, half empty worker too. 0: none is."""
    linger_s: float = 0.0
    """How long after SIGTERM new requests are still taken: whoever leads clients here needs a moment to hear that /ready is off."""
    drain_s: float = 30.0
    """How long running streams may go on after that."""
    trace_ring: int = 1000
    """Traces of finished requests kept for /admin/traces; about 2 KB each, 18 KB for an answer of 4096 tokens or more. 0: none."""
    decision_ring: int = 1000
    """Placements kept for /internal/v1/decisions; at most 5 KB each. 0: none."""
    zone: str = ""
    """Where this router runs: workers of the same zone are preferred by the policy `predicted`. Empty: not known, all are equal."""
    otlp_endpoint: str | None = None
    """Base URL of an OpenTelemetry collector (OTLP over HTTP), such as http://collector:4318. None: traces are not exported."""
    otlp_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Sent along, such as authorization=Bearer abc,x-tenant=blue: what a collector beyond this cluster may ask for."""
    log_level: str = "INFO"
    pod_name: str | None = None
    """Names this router in its sessions: a restarted container replaces its old session. None: a random name."""

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.bind_host)

    @property
    def key_database(self) -> str | None:
        """None: no keys but api_key. In a cluster unless database is set: a pod's files end with it, and its siblings do not see them."""
        if self.database is not None or self.discovery == "kubernetes":
            return self.database
        return str(self.cache_dir / "router.sqlite3")


def parse_settings(environment: Mapping[str, str]) -> RouterSettings:
    """Raises ConfigError with one line."""
    values = {name.removeprefix("PAGODA_").lower(): value for name, value in environment.items() if name.startswith("PAGODA_")}
    _refuse_unknown(values)
    discovery = _discovery(values)
    if discovery == "kubernetes" and not values.get("namespace"):
        raise ConfigError("PAGODA_NAMESPACE is not set: the namespace whose models this router serves")
    settings = RouterSettings(
        bind_host=values.get("bind_host") or "127.0.0.1",
        http_port=port(values, "http_port", 8000),
        reuse_port=switch(values, "reuse_port"),
        internal_port=port(values, "internal_port", 8001),
        internal_token=values.get("internal_token") or None,
        session_token=values.get("session_token", ""),
        discovery=discovery,
        namespace=values.get("namespace", ""),
        fleet_file=None
        if discovery == "kubernetes"
        else path(values, "fleet_file", "the file in which the supervisor lists models and workers"),
        cache_dir=path(values, "cache_dir", "a writable folder for tokenizers and chat templates"),
        api_key=values.get("api_key") or None,
        cors_origins=parse_origins(values.get("cors_origins", "")),
        database=database_url(values),
        redis=redis_url(values),
        max_body_bytes=whole(values, "max_body_bytes", 10 * 2**20, least=1024),
        max_queue_tokens=whole(values, "max_queue_tokens", 200_000, least=0),
        queue_timeout_s=seconds(values, "queue_timeout_s", 60.0),
        max_queue_requests=whole(values, "max_queue_requests", 4096, least=1),
        throughput_queue_timeout_s=seconds(values, "throughput_queue_timeout_s", 300.0),
        promote_after_s=seconds(values, "promote_after_s", 30.0),
        waves=switch(values, "waves"),
        first_token_timeout_s=timeout(values, "first_token_timeout_s", 300.0),
        next_token_timeout_s=timeout(values, "next_token_timeout_s", 60.0),
        retry_share=share(values, "retry_share", 0.1),
        replay_share=share(values, "replay_share", 1.0),
        hedge_factor=factor(values, "hedge_factor"),
        linger_s=seconds(values, "linger_s", 0.0),
        drain_s=seconds(values, "drain_s", 30.0),
        trace_ring=whole(values, "trace_ring", 1000, least=0, most=1_000_000),
        decision_ring=whole(values, "decision_ring", 1000, least=0, most=1_000_000),
        zone=values.get("zone", ""),
        otlp_endpoint=http_url(values, "otlp_endpoint"),
        otlp_headers=headers(values, "otlp_headers"),
        log_level=_log_level(values),
        pod_name=values.get("pod_name") or None,
    )
    if settings.api_key is None and not settings.is_loopback:
        raise ConfigError(f"PAGODA_BIND_HOST={settings.bind_host} is reachable from outside: set PAGODA_API_KEY, or bind 127.0.0.1")
    if settings.http_port == settings.internal_port != 0:
        raise ConfigError(f"PAGODA_HTTP_PORT and PAGODA_INTERNAL_PORT are both {settings.http_port}: give them different ports")
    return settings


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_OWN = frozenset(RouterSettings.__dataclass_fields__)


def _refuse_unknown(values: Mapping[str, str]) -> None:
    tolerated = {name.removeprefix("PAGODA_").lower() for name in TOLERATED}
    for name in sorted(values):
        if name in _OWN or name in tolerated:
            continue
        close = difflib.get_close_matches(name, _OWN, n=1, cutoff=0.6)
        advice = f"did you mean PAGODA_{close[0].upper()}?" if close else f"known are {', '.join(variable_of(n) for n in sorted(_OWN))}"
        raise ConfigError(f"the router knows no setting {variable_of(name)}: {advice}")


def _discovery(values: Mapping[str, str]) -> Literal["file", "kubernetes"]:
    match values.get("discovery") or "file":
        case "file":
            return "file"
        case "kubernetes":
            return "kubernetes"
        case other:
            raise ConfigError(f"PAGODA_DISCOVERY={other!r} is not one of file, kubernetes")


def _log_level(values: Mapping[str, str]) -> str:
    level = (values.get("log_level") or "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"PAGODA_LOG_LEVEL={level!r} is not one of DEBUG, INFO, WARNING, ERROR")
    return level
