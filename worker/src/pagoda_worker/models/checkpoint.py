"""What a model folder holds: a config.json with safetensors, or one GGUF file. Which of the two is seen, not guessed.

Called by registry.py, the loader, and commands.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagoda_worker.errors import ModelError
from pagoda_worker.models.files import CONFIG, Tensors, open_safetensors, read_json, safetensors_dtype, safetensors_files
from pagoda_worker.models.formats.detection import layout_of
from pagoda_worker.models.formats.gguf import GgufLayout, GgufTensors, read_gguf
from pagoda_worker.models.formats.gguf_file import gguf_in
from pagoda_worker.models.formats.layout import Layout


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, or what it would say. Raises ModelError, UnsupportedModel."""
    path = gguf_in(folder)
    return read_json(folder, CONFIG) if path is None else read_gguf(path)[0]


def layout_in(folder: Path, raw: Mapping[str, Any]) -> Layout | None:
    """`raw`: read_config's. None: a plain checkpoint."""
    with open_checkpoint(folder, raw) as (_, layout):
        return layout


@contextmanager
def open_checkpoint(folder: Path, raw: Mapping[str, Any]) -> Iterator[tuple[Tensors, Layout | None]]:
    """Raises ModelError, UnsupportedModel."""
    path = gguf_in(folder)
    if path is None:
        layout = layout_of(raw)
        with open_safetensors(folder) as tensors:
            yield tensors, layout
    else:
        config, file = read_gguf(path)
        found = GgufTensors(file, config)
        yield found, GgufLayout(found)


def stored_dtype(folder: Path) -> str:
    """For folders whose config.json does not tell. Raises ModelError."""
    return safetensors_dtype(folder)


def checkpoint_bytes(folder: Path) -> int:
    """Of the files with weights. Raises ModelError when one that the index names is not there."""
    path = gguf_in(folder)
    try:
        return sum(each.stat().st_size for each in (safetensors_files(folder) if path is None else [path]))
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
