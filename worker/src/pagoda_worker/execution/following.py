"""A rank that follows: does what rank 0 tells, with its part of the model and its own cache. Knows no requests and samples nothing.

Called by rank_process.py. What it computes beyond its share of the ranks' meetings is thrown away.
"""

import socket

import torch
from torch import Tensor

from pagoda_worker.errors import CannotSleep, WorkerError
from pagoda_worker.execution.rank_messages import (
    Agreed,
    Allocate,
    Change,
    Counted,
    Done,
    Down,
    Failed,
    Forward,
    Join,
    Logits,
    Sleep,
    Up,
    Wake,
    data_of,
    decode_down,
    expect,
    read_frame,
    total_bytes,
    unpack_batch,
)
from pagoda_worker.execution.runner import Runner, RunnerShape
from pagoda_worker.framing import frame
from pagoda_worker.loading.loader import load, out_of_memory_says
from pagoda_worker.loading.rank import Rank
from pagoda_worker.loading.sleep import IN_FOLDER, Weights
from pagoda_worker.models.base import Model


class Rank0Left(Exception):
    """Its end of the socket is closed: there is nothing left to do."""


class Connection:
    """To rank 0."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._stream = connection.makefile("rb")

    def next(self) -> Down:
        """Raises Rank0Left."""
        payload = read_frame(self._stream)
        if payload is None:
            raise Rank0Left
        return decode_down(payload)

    def send(self, message: Up) -> None:
        """Raises Rank0Left."""
        try:
            self._socket.sendall(frame(message))
        except OSError as error:
            raise Rank0Left from error

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


class Follower:
    def __init__(self, join: Join, connection: Connection) -> None:
        """Reads the rank's part of the model and agrees on the size of the cache. Raises WorkerError."""
        self._connection = connection
        loaded = load(join.config, rank=Rank(join.index, join.count, join.meeting, join.apart), agree=self._agree)
        self._device, self._dtype, self._kv_dtype = loaded.device, loaded.dtype, loaded.kv_dtype
        self._weights = Weights(loaded.model, loaded.read_model, loaded.device)
        self._model = loaded.model
        """None: it sleeps, or was not read yet."""
        self._runner: Runner | None = None
        self._hidden: Tensor | None = None
        """Of the last forward pass."""
        self._problem: Failed | None = None
        """Why the weights did not come back, for the order that asks."""

    def _agree(self, blocks: int) -> int:
        self._connection.send(Counted(blocks))
        return expect(self._connection.next(), Agreed).blocks

    @torch.inference_mode()
    def run(self) -> None:
        """Until Rank0Left. Raises whatever a step raises: the ranks are out of step then."""
        while True:
            self._obey(self._connection.next())

    def _obey(self, message: Down) -> None:
        if isinstance(message, Forward):
            self._forward(message)
        elif isinstance(message, Logits):
            self._logits(message.rows)
        elif isinstance(message, Change):
            self._there.apply_changes(message.here())
        elif isinstance(message, Allocate):
            self._connection.send(self._allocate(message.shape))
        elif isinstance(message, Sleep):
            self._sleep(message.level)
            self._connection.send(Done())
        elif isinstance(message, Wake):
            self._wake()

    @property
    def _there(self) -> Runner:
        assert self._runner is not None, "rank 0 allocates before it computes"
        return self._runner

    def _forward(self, message: Forward) -> None:
        model, data = self._there.model, data_of(message)
        if data is None:
            data = torch.empty(total_bytes(message), dtype=torch.uint8, device=self._device)
            model.operators.collectives.broadcast(data)
        step = unpack_batch(message, data)
        if self._there.adapters is not None:
            self._there.adapters.take(step.adapter_slots)
        self._hidden = model.forward(step.ids, step.positions, self._there.caches, step.batch)

    def _logits(self, rows: int | None) -> None:
        model, hidden = self._there.model, self._hidden
        assert hidden is not None, "there was a forward pass"
        if rows is not None:
            hidden = hidden.new_empty((rows, hidden.shape[1]))
            model.operators.collectives.broadcast(hidden)
        model.logits(hidden)

    def _allocate(self, shape: RunnerShape) -> Done | Failed:
        problem, self._problem = self._problem, None
        if problem is not None:
            return problem
        assert self._model is not None, "it was woken"
        try:
            with out_of_memory_says(
                f"no room for a KV cache of {shape.block_count * shape.block_size} tokens: something else uses the device"
            ):
                self._runner = Runner(self._model, shape, dtype=self._dtype, kv_dtype=self._kv_dtype, device=self._device)
        except WorkerError as error:
            return Failed(str(error), error.reason)
        return Done()

    def _sleep(self, level: int) -> None:
        """A rank whose host has no room drops its weights and will read them again."""
        try:
            self._weights.sleep(level, self._drop)
        except CannotSleep:
            self._weights.sleep(IN_FOLDER, self._drop)

    def _drop(self) -> None:
        if self._runner is not None and self._runner.adapters is not None:
            self._runner.adapters.detach()
        self._runner = self._model = self._hidden = None

    def _wake(self) -> None:
        try:
            self._weights.wake(self._take_up)
        except WorkerError as error:
            self._problem = Failed(str(error), error.reason)

    def _take_up(self, model: Model) -> None:
        self._model = model
