"""PAGODA_ADAPTERS and sources of adapters → folders on this machine. Knows the file system only.

Called by settings at start, and by the front for each one that is loaded later. What the fetch step completed is found by the same names.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_worker.errors import ConfigError, ModelMissing
from pagoda_worker.settings.model_cache import DEFAULT_REVISION, SourceFolder, parse_remote
from pagoda_worker.settings.sources import FETCHED_SCHEMES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
FIELDS = ("name", "source", "revision")
_ELSEWHERE = (
    "a running worker reads folders only: copy it to one that the worker sees, and write file:///absolute/folder, or hf://ORG/NAME of one "
    "in spec.adapters"
)


@dataclass(frozen=True, slots=True)
class DeclaredAdapter:
    name: str
    source: str
    revision: str = DEFAULT_REVISION


def parse_adapters(text: str) -> list[DeclaredAdapter]:
    """A JSON list of {"name", "source"} and, if wanted, "revision". Raises ConfigError."""
    try:
        listed = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"PAGODA_ADAPTERS is not JSON: {error}") from error
    if not isinstance(listed, list):
        raise ConfigError("PAGODA_ADAPTERS must be a JSON list of objects")
    adapters = [_adapter(f"PAGODA_ADAPTERS[{index}]", each) for index, each in enumerate(listed)]
    if len({each.name for each in adapters}) < len(adapters):
        raise ConfigError("PAGODA_ADAPTERS names an adapter twice")
    return adapters


def _adapter(path: str, given: Any) -> DeclaredAdapter:
    if not isinstance(given, dict) or not {"name", "source"} <= given.keys() <= set(FIELDS):
        raise ConfigError(f"{path} must be an object with name and source, and maybe revision")
    if not all(isinstance(value, str) and value for value in given.values()):
        raise ConfigError(f"{path}: every field must be a text")
    check_name(given["name"])
    return DeclaredAdapter(**given)


def check_name(name: str) -> None:
    """Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"an adapter's name is {name[:200]!r}; it must be letters, digits, '.', '_', ':' and '-', at most 128")


def adapter_folder(source: str, *, revision: str = DEFAULT_REVISION, cache: Path | None = None) -> Path:
    """Raises ConfigError with one sentence: what was asked, what there is, what to write."""
    if source.startswith(FETCHED_SCHEMES):
        found = SourceFolder(cache, parse_remote(source, "adapter source")).find(revision) if cache is not None else None
        if found is None and not source.startswith("hf://"):
            raise ConfigError(f"adapter source {source[:200]}: {_ELSEWHERE}")
        if found is None:
            raise ModelMissing(
                f"adapter source {source}: this worker holds no complete copy of its revision {revision}, and only the fetch step "
                f"downloads: declare it in spec.adapters, or name a folder, file:///..."
            )
        return found.folder
    path = Path(source.removeprefix("file://"))
    if not path.is_absolute():
        raise ConfigError(f"adapter source {source[:200]}: {_ELSEWHERE}")
    if not (path / "adapter_config.json").is_file():
        raise ModelMissing(f"adapter source {source}: {path} has no adapter_config.json; it must be a PEFT folder that the worker can see")
    return path
