"""Where a model's folder lies on this machine. Reads folder names only. Called by executor.py, and by the command line before it submits.

This version fetches nothing: hf://ORG/NAME is looked up in the Hugging Face cache that `hf download` fills.
"""

from collections.abc import Mapping
from pathlib import Path


class SourceMissing(Exception):
    """One sentence: what is not there, and how to get it."""


def resolve_source(source: str, environment: Mapping[str, str]) -> str:
    """What a worker can load: builtin://NAME as it is, anything else as an absolute folder that exists."""
    scheme, separator, location = source.partition("://")
    if not separator:
        return str(_model_folder(Path(source)))
    if scheme == "builtin":
        return source
    if scheme == "file":
        return str(_model_folder(Path(location)))
    if scheme == "hf":
        return str(_model_folder(cached_snapshot(location, environment)))
    raise SourceMissing(f"{source}: {scheme}:// is not available on one machine; use file://FOLDER, hf://ORG/NAME or builtin://tiny")


def cached_snapshot(location: str, environment: Mapping[str, str]) -> Path:
    """ORG/NAME or ORG/NAME@REVISION → the folder of that snapshot in the Hugging Face cache."""
    repository, _, revision = location.partition("@")
    folder = _hub(environment) / f"models--{repository.replace('/', '--')}"
    name = revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text().strip() if ref.is_file() else name
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        asked = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise SourceMissing(
            f"hf://{location} is not in the Hugging Face cache at {_hub(environment)} and this version does not download: run `{asked}`"
        )
    return snapshot


def _hub(environment: Mapping[str, str]) -> Path:
    if hub := environment.get("HF_HUB_CACHE"):
        return Path(hub)
    if home := environment.get("HF_HOME"):
        return Path(home) / "hub"
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface/hub"


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise SourceMissing(f"there is no folder {folder}: check the path in spec.model.source")
    if not (folder / "config.json").is_file():
        raise SourceMissing(f"{folder} has no config.json: a model is a Hugging Face folder (config.json, *.safetensors, tokenizer.json)")
    return folder
