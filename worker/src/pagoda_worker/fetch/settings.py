"""The fetch step's environment variables, parsed once. The worker's own are tolerated: both may be started from one list."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from pagoda_worker.errors import ConfigError
from pagoda_worker.logs import LEVELS
from pagoda_worker.settings.adapters import DeclaredAdapter, parse_adapters
from pagoda_worker.settings.environment import absolute_folder, one_of, port, refuse_unknown, required
from pagoda_worker.settings.model_cache import DEFAULT_REVISION
from pagoda_worker.settings.sources import FETCHED_SCHEMES
from pagoda_worker.settings.worker import OWN_NAMES as WORKER_NAMES

OWN_NAMES = WORKER_NAMES | {"PAGODA_MODEL_ENDPOINT", "PAGODA_HF_TOKEN"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchSettings:
    source: str
    declared: tuple[DeclaredAdapter, ...] = ()
    """Adapters of the model."""
    draft: str = ""
    """Source of the model that guesses for it; empty: none is fetched."""
    cache: Path = Path("/models")
    revision: str = DEFAULT_REVISION
    """A branch, a tag or a commit; the last needs no network once it is complete. s3:// has none."""
    endpoint: str = ""
    """Of the hub or the S3 service; empty: the public one."""
    hub_token: str = field(default="", repr=False)
    bind_host: str = "127.0.0.1"
    http_port: int = 9001
    log_level: str = "info"
    is_adapter: bool = False
    """The source is a LoRA adapter, not a model."""

    @property
    def others(self) -> list["FetchSettings"]:
        """Of the draft model and each adapter, where they have to be fetched."""
        draft = [self._beside(self.draft, DEFAULT_REVISION, is_adapter=False)] if self.draft.startswith(FETCHED_SCHEMES) else []
        adapters = [
            self._beside(each.source, each.revision, is_adapter=True) for each in self.declared if each.source.startswith(FETCHED_SCHEMES)
        ]
        return [*draft, *adapters]

    def _beside(self, source: str, revision: str, *, is_adapter: bool) -> "FetchSettings":
        """The endpoint is the model's: it holds for sources of its kind."""
        endpoint = self.endpoint if source.startswith(f"{self.source.partition('://')[0]}://") else ""
        return replace(self, source=source, revision=revision, endpoint=endpoint, declared=(), draft="", is_adapter=is_adapter)


def parse_settings(env: Mapping[str, str]) -> FetchSettings:
    """Raises ConfigError."""
    refuse_unknown(env, OWN_NAMES, "fetch step")
    endpoint = env.get("PAGODA_MODEL_ENDPOINT", "").rstrip("/")
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise ConfigError(f"PAGODA_MODEL_ENDPOINT is {endpoint!r}; it must be an address such as https://hub.example.com")
    return FetchSettings(
        source=required(env, "PAGODA_MODEL_SOURCE", "hf://ORGANISATION/NAME or s3://BUCKET/FOLDER"),
        declared=tuple(parse_adapters(env.get("PAGODA_ADAPTERS", "[]"))),
        draft=env.get("PAGODA_DRAFT_SOURCE", ""),
        cache=absolute_folder(env, "PAGODA_MODEL_CACHE") or Path("/models"),
        revision=env.get("PAGODA_MODEL_REVISION") or DEFAULT_REVISION,
        endpoint=endpoint,
        hub_token=env.get("PAGODA_HF_TOKEN", "").strip(),
        bind_host=env.get("PAGODA_BIND_HOST", "127.0.0.1"),
        http_port=port(env, "PAGODA_HTTP_PORT", 9001),
        log_level=one_of(env, "PAGODA_LOG_LEVEL", "info", LEVELS),
    )
