"""What the installation decides for all models alike: images, replicas of routers, tokens, what may be mounted. Plain data."""

from dataclasses import dataclass, field

from pagoda_operator.render.slo_rules import RUNBOOKS
from pagoda_operator.render.tokens import Purpose, plain_name, secret_name, token


@dataclass(frozen=True, slots=True)
class SecretPort:
    """A server whose URL, with its password, only a Secret knows, and the port at which a network policy lets it be reached."""

    secret: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    version: str
    """Tag of the images and value of app.kubernetes.io/version."""
    image_registry: str = ""
    """Images are {registry/}pagoda/router:{version} and {registry/}pagoda/worker:{version}."""
    router_image: str | None = None
    worker_image: str | None = None
    """Whole references instead; None: made of registry and version."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets of each namespace with models."""
    router_replicas: int = 1
    """0: the number is not ours to write, because an autoscaler of the cluster has it."""
    router_settings: tuple[tuple[str, str], ...] = ()
    """Of the routers' environment: variables and values beyond their defaults."""
    linger_s: int = 0
    """How long routers still take requests after SIGTERM, until all who lead clients to them have heard of it."""
    drain_s: int = 30
    """How long routers, after that, and workers finish what they have."""
    otlp_endpoint: str | None = None
    """Where routers send traces, by OTLP over HTTP. None: nowhere."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages may call routers from a browser."""
    database: SecretPort | None = None
    """The Secret of each namespace with models whose key `url` is the routers' PAGODA_DATABASE. None: no keys but the one Secret's."""
    redis: SecretPort | None = None
    """The same of PAGODA_REDIS. None: each router limits on its own."""
    host_paths: bool = False
    """Allow file:// sources, and mount them from the node. Off: such a model is refused with HostPathForbidden."""
    master_key: bytes | None = field(default=None, repr=False)
    """The session and internal tokens of each namespace derive from it. None: plain names, and somebody else fills them."""
    monitoring: frozenset[str] = frozenset()
    """Of `kinds.MONITORING` those that the cluster knows and this installation may make."""
    runbooks: str = RUNBOOKS
    """Address below which each alert's page is."""
    operator_namespace: str | None = None
    """The only namespace from which routers' internal port is reached. None: any."""
    metrics_namespaces: tuple[str, ...] = ()
    """The namespaces from which workers' metrics are scraped. Empty: any."""
    api_server_cidrs: tuple[str, ...] = ()
    """Where the API server is, for the routers' egress. Empty: any address, on the API server's ports."""

    @property
    def router_image_reference(self) -> str:
        return self.router_image or self._image("router")

    @property
    def worker_image_reference(self) -> str:
        return self.worker_image or self._image("worker")

    def session_secret(self, namespace: str) -> str:
        """Name of the Secret whose key `token` routers show to workers."""
        return self._secret("session", namespace)

    def internal_secret(self, namespace: str) -> str:
        """Name of the Secret whose key `token` opens the routers' internal port."""
        return self._secret("internal", namespace)

    def _secret(self, purpose: Purpose, namespace: str) -> str:
        return plain_name(purpose) if self.master_key is None else secret_name(purpose, token(self.master_key, purpose, namespace))

    def _image(self, component: str) -> str:
        registry = f"{self.image_registry.rstrip('/')}/" if self.image_registry else ""
        return f"{registry}pagoda/{component}:{self.version}"
