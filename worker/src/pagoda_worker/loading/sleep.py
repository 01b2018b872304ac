"""The model and where it lies: on its device (level 0), in host memory (1), or in its folder only (2).

Owns the weights between engine and loader; knows no requests and no KV cache, which the engine drops itself. Levels are vLLM's. On a CPU
level 1 leaves the weights where they are, in host memory already, so that only the KV cache is given back.
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.errors import CannotSleep, OutOfMemory, WorkerError
from pagoda_worker.layers.adapters import AdapterSide
from pagoda_worker.models.base import Model

AWAKE, ON_HOST, IN_FOLDER = 0, 1, 2


class Weights:
    """`read` loads the model from its folder onto its device; raises WorkerError when that cannot be."""

    def __init__(self, model: Model | None, read: Callable[[], Model], device: torch.device) -> None:
        """`model` None: not loaded yet, which is level 2."""
        self._model = model
        self._read = read
        self._device = device
        self._host: HostCopy | None = None
        self.level = AWAKE if model is not None else IN_FOLDER

    def sleep(self, level: int, drop: Callable[[], None]) -> int:
        """From awake to 1 or 2, or from 1 to 2; nothing when that deep already. `drop` lets go of whatever else holds the model. Returns
        the bytes freed. Raises CannotSleep for a level that is none, and when the host has no room: still awake."""
        if level not in (ON_HOST, IN_FOLDER):
            raise CannotSleep(f"sleep level {level} was asked for; it must be 1 (weights to host memory) or 2 (weights dropped)")
        if self.level >= level:
            return 0
        before = memory_held_bytes(self._device)
        if level == ON_HOST and self._device.type != "cpu":
            try:
                self._host = HostCopy(tensors_of(self._model), pin=True)
            except (MemoryError, RuntimeError) as error:  # pinned memory lacks with a plain RuntimeError
                raise CannotSleep(f"the host has no memory for the weights: sleep at level 2, which drops them ({error})") from error
        if self.level == AWAKE:
            drop()
        self._settle(level)
        return max(before - memory_held_bytes(self._device), 0)

    def wake(self, use: Callable[[Model], None]) -> None:
        """On the device again, bit for bit, and taken up by `use`. When either fails the weights are in their folder only, and another try
        reads them there."""
        if self.level == AWAKE:
            return
        try:
            if self._host is not None:
                self._host.restore()
            self._model = self._model or self._read()
            use(self._model)
        except WorkerError:
            self._settle(IN_FOLDER)
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._settle(IN_FOLDER)
            raise OutOfMemory(f"the weights find no room now: {error}") from error
        self._host, self.level = None, AWAKE

    def _settle(self, level: int) -> None:
        self.level = level
        if level == IN_FOLDER:
            self._model = self._host = None
        give_back_memory(self._device)


class HostCopy:
    """The storages of some tensors in host memory, while the tensors themselves hold nothing. Tensor objects and views of one another stay
    what they are, so that whoever holds them needs no word about it. What remembers addresses (CUDA graphs) must be made anew."""

    def __init__(self, tensors: Iterable[Tensor], *, pin: bool) -> None:
        storages = {storage.data_ptr(): storage for tensor in tensors if (storage := tensor.untyped_storage()).nbytes()}
        self._parts = [(storage, torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=pin)) for storage in storages.values()]
        for storage, copy in self._parts:  # all of them, before any is freed
            copy.copy_(_bytes_of(storage))
        for storage, _ in self._parts:
            storage.resize_(0)

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for _, copy in self._parts)

    def restore(self) -> None:
        for storage, copy in self._parts:
            storage.resize_(copy.nbytes)
            _bytes_of(storage).copy_(copy, non_blocking=True)
        for device in {storage.device for storage, _ in self._parts if storage.device.type == "cuda"}:
            torch.cuda.synchronize(device)  # the pinned copies must outlive the transfer


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def tensors_of(thing: Any) -> Iterator[Tensor]:
    """Every tensor that a model holds: in its attributes and slots, in lists, tuples and dictionaries of them, in objects of ours. Not
    those of adapters, which the host has already: slots are filled anew."""
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, AdapterSide):
            continue
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, list | tuple):
            waiting += each
        elif type(each).__module__.startswith("pagoda_worker."):
            slots = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
            waiting += [getattr(each, name) for name in slots if hasattr(each, name)]
            waiting += getattr(each, "__dict__", {}).values()


def give_back_memory(device: torch.device) -> None:
    """What nobody holds any more goes to the device or to the operating system, not to an allocator's stock."""
    gc.unfreeze()  # the engine process froze what it had loaded
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def memory_held_bytes(device: torch.device) -> int:
    """By this process: of the device on CUDA, resident in the host's memory on a CPU. Two readings tell what sleeping gave back."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    with open("/proc/self/statm") as file:  # noqa: PTH123  # not a file
        return int(file.read().split()[1]) * 4096
