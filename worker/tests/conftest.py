"""Shared by the engine's tests: random small checkpoints, written once per session by transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A slow moment of the machine is no failure.
settings.register_profile("worker", deadline=None)
settings.load_profile("worker")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoint(name, **differences from the small Llama, or model_type and its) → a Hugging Face folder. Same name, same folder."""
    from random_checkpoint import write_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")

    def build(name: str = "small", **differences: Any) -> Path:
        folder = root / name
        if not folder.exists():
            write_checkpoint(folder, **differences)
        return folder

    return build
