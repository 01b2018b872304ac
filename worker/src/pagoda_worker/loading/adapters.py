"""The adapters that this engine has, by name: reads them beside the steps, one after another, and hands out what a name means now.

Owns names and versions; weights of those that nobody means or runs any more are freed by themselves. Called by the engine between two
steps; reading happens in a thread of its own. Knows neither slots nor sequences.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import AdapterError, AdapterNotFound
from pagoda_worker.facts import AdapterFacts, AdaptersState
from pagoda_worker.layers.parallel import Part
from pagoda_worker.loading.peft import AdapterWeights, LinearShape, read_adapter
from pagoda_worker.models.base import FusedLinear, Model, adaptable, part_of
from pagoda_worker.scheduling.adapters import Adapter, AdapterSlots

MAX_ADAPTERS = 1024

Read = Callable[[Path], AdapterWeights]


@dataclass(frozen=True, slots=True)
class AdapterLoad:
    """One that is over."""

    name: str
    facts: AdapterFacts | None
    """None: it could not be."""
    problem: str = ""


class AdapterDirectory:
    def __init__(self) -> None:
        self._read: Read | None = None
        """None: this engine takes no adapters, or has not read its model yet."""
        self._adapters: dict[str, tuple[Adapter, AdapterFacts]] = {}
        self._wishes: queue.SimpleQueue[tuple[str, Path]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, Path, AdapterWeights | AdapterError]] = queue.SimpleQueue()
        self._reading = 0
        self._reader: threading.Thread | None = None
        self.retired: list[Adapter] = []
        """Unloaded or replaced since the engine last looked."""
        self.changed = False

    def open(self, read: Read) -> None:
        """`read`: of a folder, from any thread; raises AdapterError."""
        self._read = read

    @property
    def opened(self) -> bool:
        return self._read is not None

    @property
    def reading(self) -> bool:
        return self._reading > 0

    def find(self, name: str) -> Adapter | None:
        """None for no name. Raises AdapterNotFound."""
        if not name:
            return None
        if name not in self._adapters:
            raise AdapterNotFound(f"there is no adapter {name!r}; there is: {', '.join(sorted(self._adapters)) or 'none'}", param="adapter")
        return self._adapters[name][0]

    def facts(self) -> list[AdapterFacts]:
        return [facts for _, (_, facts) in sorted(self._adapters.items())]

    def load(self, name: str, folder: Path) -> AdapterFacts:
        """Here and now. Raises AdapterError."""
        return self._take_in(name, folder, self._checked_read()(folder))

    def begin(self, name: str, folder: Path) -> None:
        """In the background; `poll` tells when it is there. Raises AdapterError."""
        self._checked_read()
        if self._reader is None:
            self._reader = threading.Thread(target=self._read_on, name="adapters", daemon=True)
            self._reader.start()
        self._reading += 1
        self._wishes.put((name, folder))

    def poll(self) -> list[AdapterLoad]:
        """What was read since; new requests of those names have it from here on."""
        over: list[AdapterLoad] = []
        while not self._done.empty():
            name, folder, outcome = self._done.get()
            self._reading -= 1
            try:
                if isinstance(outcome, AdapterError):
                    raise outcome
                over.append(AdapterLoad(name, self._take_in(name, folder, outcome)))
            except AdapterError as error:
                over.append(AdapterLoad(name, None, str(error)))
        return over

    def unload(self, name: str) -> None:
        """Sequences that have it keep it to their end. Raises AdapterError."""
        if name not in self._adapters:
            raise AdapterError(f"there is no adapter {name!r} to unload; there is: {', '.join(sorted(self._adapters)) or 'none'}")
        self.retired.append(self._adapters.pop(name)[0])
        self.changed = True

    def take_retired(self) -> list[Adapter]:
        retired, self.retired = self.retired, []
        return retired

    def state(self, slots: AdapterSlots) -> AdaptersState:
        newest = {name: adapter for name, (adapter, _) in self._adapters.items()}
        return AdaptersState(self.facts(), [each.name for each in slots.resident if each is newest.get(each.name)])

    def news(self, slots: AdapterSlots) -> AdaptersState | None:
        """Since it was last asked."""
        if not (self.changed or slots.changed):
            return None
        self.changed = slots.changed = False
        return self.state(slots)

    def _take_in(self, name: str, folder: Path, weights: AdapterWeights) -> AdapterFacts:
        if name in self._adapters:
            if self._adapters[name][0].version == weights.version:  # the same files: those that run and those that come may share
                return self._adapters[name][1]
            self.retired.append(self._adapters[name][0])
        elif len(self._adapters) >= MAX_ADAPTERS:
            raise AdapterError(f"{MAX_ADAPTERS} adapters are loaded, no more are kept: unload one first")
        self.changed = True
        facts = AdapterFacts(name, weights.version, str(folder), weights.rank, weights.nbytes)
        self._adapters[name] = Adapter(name, weights.version, weights), facts
        return facts

    def _checked_read(self) -> Read:
        if self._read is None:
            raise AdapterError("this worker has no room for adapters: set spec.engine.adapters.slots to at least 1")
        return self._read

    def _read_on(self) -> None:
        assert self._read is not None
        _compute_alone()
        while True:
            name, folder = self._wishes.get()
            outcome: AdapterWeights | AdapterError
            try:
                outcome = self._read(folder)
            except AdapterError as error:
                outcome = error
            except Exception as error:  # whatever a file can do to a reader must cost that adapter, not the engine
                outcome = AdapterError(f"{folder} cannot be read: {type(error).__name__}: {error}")
            self._done.put((name, folder, outcome))


def _compute_alone() -> None:
    """torch computes in this thread only, from here on. With helpers of its own it would wait for them at every small tensor, and they for
    the cores on which the steps run."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    later = threading.Thread(target=torch.set_num_threads, args=(usual,))  # what threads yet to come begin with: it was set, too
    later.start()
    later.join()


def open_for(model: Model, directory: AdapterDirectory, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> None:
    """The model was just read: adapters can be, and those that the settings declare are. Raises AdapterError naming the adapter."""
    parts = model.parts()
    shapes = {name: _whole(each, name, out, parts) for each in adaptable(model.linears()) for name, out in each.modules}
    prefix, most = model.optional_prefix, config.max_adapter_rank
    directory.open(partial(read_adapter, shapes=shapes, optional_prefix=prefix, max_rank=most, dtype=dtype, pin=device.type == "cuda"))
    for name, folder in config.adapters.items():
        try:
            directory.load(name, folder)
        except AdapterError as error:
            raise AdapterError(f"adapter {name!r}: {error}") from error


def _whole(fused: FusedLinear, name: str, out: int, parts: Mapping[str, Part]) -> LinearShape:
    """A rank reads adapters whole, and keeps its part of what lies on the device."""
    part = part_of(fused, name, parts)
    rows, columns = (out, fused.inputs) if part is None else part.shape((out, fused.inputs))
    return LinearShape(columns, rows)
