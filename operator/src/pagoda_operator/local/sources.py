"""Where a model's folder lies on this machine. Reads folder names only. Called by executor.py, and by the command line before it submits.

hf://ORG/NAME that `hf download` has brought into the Hugging Face cache is used from there, without network; else a fetch step brings it.
"""

from collections.abc import Mapping
from pathlib import Path


class SourceMissing(Exception):
    """One sentence: what is not there, and how to get it."""


FETCHED = ("hf://", "s3://")


def resolve_source(source: str, environment: Mapping[str, str], revision: str | None = None) -> str:
    """What a worker can load: builtin://NAME as it is, an absolute folder that exists; or a hf:// or s3:// that must be fetched first."""
    scheme, separator, location = source.partition("://")
    if not separator:
        return str(_model_folder(Path(source)))
    if scheme == "builtin":
        return source
    if scheme == "file":
        return str(_model_folder(Path(location)))
    if scheme == "hf":
        snapshot = cached_snapshot(location, environment, revision)
        return source if snapshot is None else str(_model_folder(snapshot))
    if scheme == "s3":
        return source
    check_here(source)
    raise SourceMissing(f"{source}: use file://FOLDER, hf://ORG/NAME, s3://BUCKET/FOLDER or builtin://tiny")


def check_here(source: str, instead: str = "file://FOLDER, hf://ORG/NAME or s3://BUCKET/FOLDER") -> None:
    """Raises SourceMissing for what no single machine has."""
    if source.startswith("pvc://"):
        raise SourceMissing(f"{source}: one machine has no PersistentVolumeClaims; use {instead}")


def check_adapter(source: str) -> None:
    """Raises SourceMissing for what no worker here could read."""
    check_here(source, "file://FOLDER or hf://ORG/NAME")
    folder = Path(source.removeprefix("file://"))
    if source.startswith("file://") and not (folder / "adapter_config.json").is_file():
        raise SourceMissing(
            f"{folder} has no adapter_config.json: an adapter is a PEFT folder (adapter_config.json, adapter_model.safetensors)"
        )


def local_adapter(adapter: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """One entry of PAGODA_ADAPTERS: as a folder where the Hugging Face cache has it, else as it is."""
    source = adapter["source"]
    snapshot = cached_snapshot(source.removeprefix("hf://"), environment, adapter.get("revision")) if source.startswith("hf://") else None
    return {**adapter} if snapshot is None else {"name": adapter["name"], "source": f"file://{snapshot}"}


def cached_snapshot(location: str, environment: Mapping[str, str], revision: str | None = None) -> Path | None:
    """ORG/NAME or ORG/NAME@REVISION → the folder of that snapshot in the Hugging Face cache. None: it is not there."""
    repository, _, written = location.partition("@")
    folder = _hub(environment) / f"models--{repository.replace('/', '--')}"
    name = written or revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text().strip() if ref.is_file() else name
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _hub(environment: Mapping[str, str]) -> Path:
    if hub := environment.get("HF_HUB_CACHE"):
        return Path(hub)
    if home := environment.get("HF_HOME"):
        return Path(home) / "hub"
    cache = environment.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface/hub"


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise SourceMissing(f"there is no folder {folder}: check the path")
    if not (folder / "config.json").is_file() and not any(folder.glob("*.gguf")):
        raise SourceMissing(f"{folder} has no config.json: a model is a Hugging Face folder (config.json, *.safetensors, tokenizer.json)")
    return folder
