"""What the front asks about adapters, passed to the engine's directory between two steps, and its answers when they are there.

Owned by the engine process's loop; knows no socket.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from pagoda_worker.channel import AdapterDone, LoadAdapter, UnloadAdapter, Up
from pagoda_worker.errors import AdapterError
from pagoda_worker.facts import AdapterFacts, AdaptersState

READING_S = 0.02
"""An idle engine looks so often whether an adapter was read."""


class LoadLike(Protocol):
    """A load that is over, see loading/adapters.py."""

    @property
    def name(self) -> str: ...
    @property
    def facts(self) -> AdapterFacts | None: ...
    @property
    def problem(self) -> str: ...


class Directory(Protocol):
    @property
    def reading(self) -> bool: ...
    @property
    def opened(self) -> bool: ...
    def begin(self, name: str, folder: Path) -> None: ...
    def poll(self) -> "Sequence[LoadLike]": ...
    def unload(self, name: str) -> None: ...


class HasAdapters(Protocol):
    @property
    def adapters(self) -> Directory: ...
    def adapters_state(self) -> AdaptersState: ...


class AdapterDesk:
    def __init__(self, engine: HasAdapters, send: Callable[[Up], None]) -> None:
        self._engine = engine
        self._send = send

    @property
    def reading(self) -> bool:
        return self._engine.adapters.reading

    @property
    def opened(self) -> bool:
        """Adapters can be read, or never will be here."""
        return self._engine.adapters.opened

    def load(self, message: LoadAdapter, problem: str = "") -> None:
        """`problem`: why it cannot even be begun."""
        try:
            if problem:
                raise AdapterError(f"the model sleeps and cannot be woken: {problem}")
            self._engine.adapters.begin(message.name, Path(message.folder))
        except AdapterError as error:
            self._answer(message.name, None, str(error))

    def unload(self, message: UnloadAdapter) -> None:
        try:
            self._engine.adapters.unload(message.name)
        except AdapterError as error:
            self._answer(message.name, None, str(error))
        else:
            self._answer(message.name, None, "")

    def tell(self) -> None:
        """What was read since."""
        if self._engine.adapters.reading:
            for load in self._engine.adapters.poll():
                self._answer(load.name, load.facts, load.problem)

    def _answer(self, name: str, facts: AdapterFacts | None, problem: str) -> None:
        self._send(AdapterDone(name, self._engine.adapters_state(), facts, problem))
