"""The operator process's settings: PAGODA_* environment variables, parsed once and frozen. Called by __main__ only.

Whatever is wrong is a SettingsError of one line that names the variable. What the settings mean for manifests is
`render.installation.Settings`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pagoda_operator.errors import OperatorError
from pagoda_operator.render.installation import SecretPort, Settings
from pagoda_operator.render.router_settings import parse_router_settings
from pagoda_operator.render.slo_rules import RUNBOOKS

TOLERATED = frozenset({"PAGODA_HOME", "PAGODA_RUN_ID", "PAGODA_REQUIRE_ALL", "PAGODA_KUBE_BIN"})
"""Set by supervisors and CI for every process."""

RENEW_SHARE = 0.6
RETRY_SHARE = 0.2
"""Of the Lease's duration: after how long without a renewal a holder gives up, and how often it renews or tries."""


class SettingsError(OperatorError):
    """A PAGODA_* variable that is missing, unknown or not what it should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorSettings:
    """Each field is PAGODA_<NAME>."""

    version: str
    """Tag of the images, and app.kubernetes.io/version on all objects."""
    master_key: bytes
    """The session and internal tokens of every namespace derive from it. At least 16 bytes."""
    pod_namespace: str
    """Where the Lease is."""
    pod_name: str
    """Who holds the Lease."""
    namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    image_registry: str = ""
    """Images are {registry/}pagoda/router:{version}."""
    router_image: str | None = None
    worker_image: str | None = None
    """Whole references; None: made of registry and version."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    router_replicas: int = 2
    router_settings: tuple[tuple[str, str], ...] = ()
    """Variables of the routers' environment, from NAME=VALUE,NAME=VALUE by the chart's names (router_settings.py)."""
    linger_s: int = 5
    """How long routers still take requests after SIGTERM, until kube-proxies and load balancers have heard of it."""
    drain_s: int = 120
    """How long routers, after that, and workers finish what they have."""
    otlp_endpoint: str | None = None
    """Where routers send traces: the collector's base URL, for OTLP over HTTP. None: nowhere."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call routers from a browser; routers judge them."""
    database_secret: str | None = None
    """A Secret of each namespace with models, whose key `url` is where routers keep keys and usage. None: nowhere."""
    database_port: int = 5432
    """Of its server, for the routers' network policy."""
    redis_secret: str | None = None
    """The same where routers share their keys' limits."""
    redis_port: int = 6379
    host_paths: bool = False
    """Allow file:// sources, which mount a folder of the node."""
    metrics_namespaces: tuple[str, ...] = ()
    """From where workers' metrics are scraped. Empty: from anywhere."""
    api_server_cidrs: tuple[str, ...] = ()
    """Where the API server is, for the routers' network policy. Empty: any address, on its ports."""
    runbooks: str = RUNBOOKS
    """Address below which the pages of alerts are."""
    health_port: int = 8080
    metrics_port: int = 8081
    """0: any free port, named in the log."""
    canary: tuple[str, str] | None = None
    """(namespace, name) of an InferenceModel that is only written to and watched. None: /health does not look at watches by it."""
    lease_name: str = "pagoda-operator"
    lease_duration_s: float = 10.0
    poll_s: float = 1.0
    """Between two questions to one router or one loading worker."""
    log_level: str = "INFO"

    @property
    def renew_deadline_s(self) -> float:
        return self.lease_duration_s * RENEW_SHARE

    @property
    def retry_s(self) -> float:
        return self.lease_duration_s * RETRY_SHARE

    def for_manifests(self, monitoring: frozenset[str] = frozenset()) -> Settings:
        """`monitoring`: the Prometheus operator's kinds that the cluster knows."""
        return Settings(
            version=self.version,
            image_registry=self.image_registry,
            router_image=self.router_image,
            worker_image=self.worker_image,
            image_pull_policy=self.image_pull_policy,
            image_pull_secrets=self.image_pull_secrets,
            router_replicas=self.router_replicas,
            router_settings=self.router_settings,
            linger_s=self.linger_s,
            drain_s=self.drain_s,
            otlp_endpoint=self.otlp_endpoint,
            cors_origins=self.cors_origins,
            database=SecretPort(self.database_secret, self.database_port) if self.database_secret else None,
            redis=SecretPort(self.redis_secret, self.redis_port) if self.redis_secret else None,
            host_paths=self.host_paths,
            master_key=self.master_key,
            monitoring=monitoring,
            runbooks=self.runbooks,
            operator_namespace=self.pod_namespace,
            metrics_namespaces=self.metrics_namespaces,
            api_server_cidrs=self.api_server_cidrs,
        )


def parse_settings(environment: Mapping[str, str]) -> OperatorSettings:
    """Raises SettingsError with one line."""
    values = {name.removeprefix("PAGODA_").lower(): value for name, value in environment.items() if name.startswith("PAGODA_")}
    _refuse_unknown(values)
    return OperatorSettings(
        version=_required(values, "version", "the tag of the images"),
        master_key=_master_key(values),
        pod_namespace=_required(values, "pod_namespace", "the operator's own namespace"),
        pod_name=_required(values, "pod_name", "the operator pod's own name"),
        namespaces=_names(values, "namespaces"),
        image_registry=values.get("image_registry", "").rstrip("/"),
        router_image=values.get("router_image") or None,
        worker_image=values.get("worker_image") or None,
        image_pull_policy=_one_of(values, "image_pull_policy", "IfNotPresent", ("Always", "IfNotPresent", "Never")),
        image_pull_secrets=_names(values, "image_pull_secrets"),
        router_replicas=_whole(values, "router_replicas", 2, least=0, most=1000),
        router_settings=_router_settings(values),
        linger_s=_whole(values, "linger_s", 5, least=0, most=3600),
        drain_s=_whole(values, "drain_s", 120, least=0, most=86_400),
        otlp_endpoint=_url(values, "otlp_endpoint"),
        cors_origins=_names(values, "cors_origins"),
        database_secret=values.get("database_secret") or None,
        database_port=_whole(values, "database_port", 5432, least=1, most=65535),
        redis_secret=values.get("redis_secret") or None,
        redis_port=_whole(values, "redis_port", 6379, least=1, most=65535),
        host_paths=_boolean(values, "host_paths"),
        metrics_namespaces=_names(values, "metrics_namespaces"),
        api_server_cidrs=_names(values, "api_server_cidrs"),
        runbooks=values.get("runbooks", "").rstrip("/") or RUNBOOKS,
        health_port=_whole(values, "health_port", 8080, least=0, most=65535),
        metrics_port=_whole(values, "metrics_port", 8081, least=0, most=65535),
        canary=_canary(values),
        lease_name=values.get("lease_name") or "pagoda-operator",
        lease_duration_s=_seconds(values, "lease_duration_s", 10.0, least=1.0),
        poll_s=_seconds(values, "poll_s", 1.0, least=0.05),
        log_level=_one_of(values, "log_level", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"), fold=True),
    )


_OWN = frozenset(OperatorSettings.__dataclass_fields__)


def _refuse_unknown(values: Mapping[str, str]) -> None:
    tolerated = {name.removeprefix("PAGODA_").lower() for name in TOLERATED}
    for name in sorted(values):
        if name in _OWN or name in tolerated:
            continue
        close = difflib.get_close_matches(name, _OWN, n=1, cutoff=0.6)
        advice = f"did you mean {_variable(close[0])}?" if close else f"known are {', '.join(_variable(own) for own in sorted(_OWN))}"
        raise SettingsError(f"the operator knows no setting {_variable(name)}: {advice}")


def _variable(name: str) -> str:
    return f"PAGODA_{name.upper()}"


def _required(values: Mapping[str, str], name: str, what: str) -> str:
    if value := values.get(name, ""):
        return value
    raise SettingsError(f"{_variable(name)} is not set: {what}")


def _master_key(values: Mapping[str, str]) -> bytes:
    key = _required(values, "master_key", "a long random text, kept in a Secret").encode()
    if len(key) < 16:
        raise SettingsError(f"PAGODA_MASTER_KEY has {len(key)} bytes: give it at least 16, random")
    return key


def _url(values: Mapping[str, str], name: str) -> str | None:
    text = values.get(name)
    if not text:
        return None
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        raise SettingsError(f"{_variable(name)}={text!r} is not a URL such as http://collector:4318")
    return text


def _names(values: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in values.get(name, "").split(",") if part.strip()))


def _router_settings(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    try:
        return parse_router_settings(values.get("router_settings", ""))
    except ValueError as error:
        raise SettingsError(f"PAGODA_ROUTER_SETTINGS: {error}") from None


def _canary(values: Mapping[str, str]) -> tuple[str, str] | None:
    text = values.get("canary", "")
    if not text:
        return None
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise SettingsError(f"PAGODA_CANARY={text!r} is not NAMESPACE/NAME")
    return namespace, name


def _one_of(values: Mapping[str, str], name: str, default: str, choices: tuple[str, ...], *, fold: bool = False) -> str:
    value = values.get(name) or default
    value = value.upper() if fold else value
    if value not in choices:
        raise SettingsError(f"{_variable(name)}={value!r} is not one of {', '.join(choices)}")
    return value


def _boolean(values: Mapping[str, str], name: str) -> bool:
    return _one_of(values, name, "FALSE", ("TRUE", "FALSE"), fold=True) == "TRUE"


def _whole(values: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = values.get(name) or str(default)
    try:
        number = int(text)
    except ValueError:
        raise SettingsError(f"{_variable(name)}={text!r} is not a whole number") from None
    if not least <= number <= most:
        raise SettingsError(f"{_variable(name)}={number} is out of range: {least} to {most}")
    return number


def _seconds(values: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    text = values.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        raise SettingsError(f"{_variable(name)}={text!r} is not a number of seconds") from None
    if not least <= number <= 86_400:
        raise SettingsError(f"{_variable(name)}={text} is out of range: {least:g} to 86400 seconds")
    return number
