"""Shared by the engine's tests: random small checkpoints, written once per session by transformers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from interpreter_process import Interpreted, interpreted

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


def _waits_for_interpreter(item: pytest.Item) -> bool:
    return "interpreter" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_waits_for_interpreter)


@pytest.fixture(scope="session", autouse=True)
def started_interpreter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreted | None]:
    """Runs beside all other tests, if one waits for it: that comes last."""
    if any(_waits_for_interpreter(item) for item in request.session.items):
        with interpreted(tmp_path_factory.mktemp("interpreter") / "log") as started:
            yield started
    else:
        yield None


@pytest.fixture
def interpreter(started_interpreter: Interpreted | None) -> Interpreted:
    assert started_interpreter is not None
    return started_interpreter
