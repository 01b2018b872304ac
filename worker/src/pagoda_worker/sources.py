"""From PAGODA_MODEL_SOURCE to a folder on this machine. Knows the file system only; fetching from elsewhere is an earlier step's work.

Called by settings, before any process is started.
"""

from pathlib import Path

from pagoda_worker.errors import ConfigError

BUILTIN_DIR = Path(__file__).parent / "builtin"
REMOTE_SCHEMES = ("hf://", "s3://", "pvc://")


def resolve_source(source: str) -> Path:
    """The model's folder. Raises ConfigError with one sentence: what was asked, what there is, what to write."""
    if source.startswith("builtin://"):
        return _builtin(source.removeprefix("builtin://"))
    if source.startswith(REMOTE_SCHEMES):
        raise ConfigError(
            f"PAGODA_MODEL_SOURCE {source}: a worker reads folders only; fetch the model first and name its folder, for example file:///models/chat"
        )
    path = Path(source.removeprefix("file://"))
    if not path.is_absolute():
        raise ConfigError(f"PAGODA_MODEL_SOURCE {source}: write builtin://tiny, file:///absolute/folder or an absolute folder")
    return _model_folder(source, path)


def _builtin(name: str) -> Path:
    shipped = sorted(folder.name for folder in BUILTIN_DIR.iterdir() if (folder / "config.json").is_file()) if BUILTIN_DIR.is_dir() else []
    if name not in shipped:
        raise ConfigError(
            f"PAGODA_MODEL_SOURCE builtin://{name}: this worker ships {', '.join(f'builtin://{each}' for each in shipped) or 'no model'}"
        )
    return BUILTIN_DIR / name


def _model_folder(source: str, path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"PAGODA_MODEL_SOURCE {source}: there is no folder {path}")
    if not (path / "config.json").is_file():
        raise ConfigError(f"PAGODA_MODEL_SOURCE {source}: {path} has no config.json; it must be a Hugging Face model folder")
    return path
