"""From PAGODA_MODEL_SOURCE to a folder on this machine. Knows the file system only; fetching from elsewhere is an earlier step's work.

Called by settings, before any process is started. What `python -m pagoda_worker.fetch` completed is found here by the same names.
"""

from pathlib import Path

from pagoda_worker.errors import ConfigError, ModelMissing
from pagoda_worker.settings.model_cache import DEFAULT_REVISION, SourceFolder, parse_remote

BUILTIN_DIR = Path(__file__).parents[1] / "builtin"
FETCHED_SCHEMES = ("hf://", "s3://")
REMOTE_SCHEMES = (*FETCHED_SCHEMES, "pvc://")


def resolve_source(source: str, *, revision: str = DEFAULT_REVISION, cache: Path | None = None, named: str = "PAGODA_MODEL_SOURCE") -> Path:
    """The model's folder. `named`: who gave the source. Raises ConfigError with one sentence: what was asked, what there is, what to
    write."""
    if source.startswith("builtin://"):
        return _builtin(source.removeprefix("builtin://"), named)
    if source.startswith(FETCHED_SCHEMES) and cache is not None:
        return _fetched(source, revision, cache, named)
    if source.startswith(REMOTE_SCHEMES):
        raise ConfigError(
            f"{named} {source}: a worker reads folders only; fetch the model first and name its folder, for example file:///models/chat"
        )
    path = Path(source.removeprefix("file://"))
    if not path.is_absolute():
        raise ConfigError(f"{named} {source}: write builtin://tiny, file:///absolute/folder or an absolute folder")
    return _model_folder(source, path, named)


def _builtin(name: str, named: str) -> Path:
    shipped = sorted(folder.name for folder in BUILTIN_DIR.iterdir() if (folder / "config.json").is_file()) if BUILTIN_DIR.is_dir() else []
    if name not in shipped:
        raise ModelMissing(
            f"{named} builtin://{name}: this worker ships {', '.join(f'builtin://{each}' for each in shipped) or 'no model'}"
        )
    return BUILTIN_DIR / name


def _fetched(source: str, revision: str, cache: Path, named: str) -> Path:
    found = SourceFolder(cache, parse_remote(source)).find(revision)
    if found is None:
        raise ModelMissing(
            f"{named} {source}: {cache} holds no complete copy of its revision {revision}; "
            f"run python -m pagoda_worker.fetch with the same settings first"
        )
    return _model_folder(source, found.folder, named)


def _model_folder(source: str, path: Path, named: str = "PAGODA_MODEL_SOURCE") -> Path:
    if path.suffix == ".gguf" and path.is_file():
        return _gguf_folder(source, path)
    if not path.is_dir():
        raise ModelMissing(f"{named} {source}: there is no folder {path}")
    if not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
        raise ModelMissing(f"{named} {source}: {path} has no config.json; it must be a Hugging Face model folder, or hold a GGUF file")
    return path


def _gguf_folder(source: str, path: Path) -> Path:
    """The file is the model, and its folder has the tokenizer."""
    others = [each.name for each in path.parent.iterdir() if each != path and (each.suffix == ".gguf" or each.name == "config.json")]
    if others:
        raise ConfigError(
            f"PAGODA_MODEL_SOURCE {source}: {others[0]} is beside it; put the file and its tokenizer.json into a folder of their own"
        )
    return path.parent
