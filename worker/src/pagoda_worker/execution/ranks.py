"""Rank 0's hold on the other ranks of a tensor parallel engine: starts their processes, tells them what to compute, ends when one is lost.

Owns the processes and the sockets to them. Called by the engine; knows no requests. With one rank there is nobody to tell, and nothing here
costs a step anything.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from torch import Tensor

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import EXIT_RANK_KILLED, EXIT_RANK_LOST, ConfigError, RanksOutOfStep, WorkerError
from pagoda_worker.execution.rank_messages import (
    Agreed,
    Allocate,
    Change,
    Counted,
    Done,
    Down,
    Failed,
    Join,
    Logits,
    Sleep,
    Up,
    Wake,
    decode_up,
    expect,
    pack_batch,
    read_frame,
)
from pagoda_worker.execution.runner import RunnerShape
from pagoda_worker.framing import frame
from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.layers.meeting_ground import folder_in_memory
from pagoda_worker.layers.parallel import Collectives, Part
from pagoda_worker.loading.loader import Loaded, News, load
from pagoda_worker.loading.rank import ALONE, Rank
from pagoda_worker.loading.sleep import IN_FOLDER
from pagoda_worker.models.base import ForwardPass, FusedLinear, Model, adaptable
from pagoda_worker.scheduling.plan import StepPlan

RANK_COMMAND = (sys.executable, "-m", "pagoda_worker.rank_process")
EXIT_UNUSABLE = 2
"""Of a rank that cannot serve its part, and has said so."""
HEARD_S = 60.0
EXPLAIN_S = 2.0
"""A rank that is ending has this long to be gone before the failure of a step is told without a name."""

log = logging.getLogger(__name__)

Answer = TypeVar("Answer", Counted, Done)
Lost = Callable[[RanksOutOfStep], None]


class RankProcess(Protocol):
    """What is needed of subprocess.Popen; tests put a thread here."""

    returncode: int | Any

    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


class _Follower:
    def __init__(self, index: int, process: RankProcess, connection: socket.socket) -> None:
        self.index = index
        self.process = process
        self.connection = connection
        self.stream: BinaryIO = connection.makefile("rb")
        self.watcher: threading.Thread | None = None


Spawn = Callable[[socket.socket], RankProcess]
"""From a rank's end of the socket pair, which it must have copied when it returns."""


class Ranks:
    def __init__(self, rank: Rank, followers: list[_Follower], lost: Lost) -> None:
        self.rank = rank
        self._followers = followers
        self._lost = lost
        self._closing = False
        self._heard = threading.Event()
        """The sentence of a rank that cannot serve its part."""
        for follower in followers:
            follower.watcher = threading.Thread(target=self._watch, args=(follower,), name=f"rank-{follower.index}", daemon=True)
            follower.watcher.start()

    @classmethod
    def start(cls, config: EngineConfig, *, spawn: Spawn | None = None, lost: Lost | None = None) -> "Ranks":
        """Ranks 1 and up begin to load. Called by the thread that lives as long as the engine: their processes die with it."""
        count = config.tensor_parallel
        if count == 1:
            return cls(ALONE, [], lost or _end_process)
        meeting = Path(tempfile.mkdtemp(prefix="pagoda-ranks-", dir=folder_in_memory())) / "meeting"
        followers = []
        for index in range(1, count):
            ours, theirs = socket.socketpair()
            with theirs:
                followers.append(_Follower(index, (spawn or _spawn)(theirs), ours))
            ours.sendall(frame(Join(config, index, count, meeting, spawn is None)))
        return cls(Rank(0, count, meeting, apart=spawn is None), followers, lost or _end_process)

    # ------------------------------------------------------------ loading

    def load(self, config: EngineConfig, news: News) -> Loaded:
        """Rank 0's part, while the others read theirs. Raises as the loader does; all have ended then."""
        try:
            return load(config, news=news, rank=self.rank, agree=self._agree)
        except WorkerError:
            self.close()
            raise

    def _agree(self, blocks: int) -> int:
        """The number of KV blocks that every rank has room for. Waits until their weights are there. Raises ConfigError with the sentence
        of a rank that cannot."""
        agreed = min([blocks, *(each.blocks for each in self._answers(Counted))])
        self._send(Agreed(agreed))
        self._forget_meeting()
        return agreed

    def lead(self, model: Model, shape: RunnerShape) -> ForwardPass:
        """`model` with the other ranks', whose caches have this shape then. Raises ConfigError."""
        if not self._followers:
            return model
        self._send(Allocate(shape))
        self._answers(Done)
        return LeadingModel(model, self)

    # ------------------------------------------------------------ steps

    def change(self, plan: StepPlan) -> None:
        """Blocks move on all ranks alike; before rank 0 moves its own."""
        if self._followers and (plan.scrubs or plan.copies or plan.swap_out or plan.swap_in or plan.adapters):
            self._send(Change.of(plan))

    def forward(
        self, ids: Tensor, positions: Tensor, batch: AttentionBatch, adapter_slots: Tensor | None, collectives: Collectives
    ) -> None:
        message, data = pack_batch(ids, positions, batch, adapter_slots)
        self._send(message)
        if data is not None:
            collectives.broadcast(data)

    def logits(self, hidden: Tensor, collectives: Collectives, *, as_computed: bool) -> None:
        """`as_computed`: they are the last forward pass's, which all ranks have."""
        self._send(Logits(None if as_computed else len(hidden)))
        if not as_computed:
            collectives.broadcast(hidden.contiguous())

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """What the others were told and rank 0 does not do with them leaves them waiting: nothing goes on after that."""
        try:
            yield
        except Exception as error:
            raise self._why_lost() or RanksOutOfStep(f"rank 0 of {self.rank.count} failed in a step: {error}") from error

    # ------------------------------------------------------------ sleep

    def sleep(self, level: int) -> None:
        """After rank 0, which may refuse; the others then find a way."""
        self._send(Sleep(level))
        self._answers(Done)

    @contextlib.contextmanager
    def waking(self) -> Iterator[None]:
        """They read their weights while rank 0 does; `lead` waits for them. When it cannot, all sleep again."""
        self._send(Wake())
        try:
            yield
        except WorkerError:
            self.sleep(IN_FOLDER)
            raise

    # ------------------------------------------------------------ their ends

    def close(self) -> None:
        """Ends them. For engines that end before their process does."""
        self._closing = True
        for follower in self._followers:
            follower.connection.shutdown(socket.SHUT_RDWR)
            follower.process.kill()
        for follower in self._followers:
            follower.process.wait()
            follower.stream.close()
            follower.connection.close()
        self._forget_meeting()

    def _watch(self, follower: _Follower) -> None:
        status = follower.process.wait()
        if status == EXIT_UNUSABLE:
            self._heard.wait(HEARD_S)  # it has said why, and rank 0 will read that when it asks for what was loaded
        if not self._closing and not self._heard.is_set():
            self._lost(self._ended(follower))

    def _why_lost(self) -> RanksOutOfStep | None:
        """Of a rank that is gone, or goes now."""
        for follower in self._followers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                follower.process.wait(EXPLAIN_S / len(self._followers))
                return self._ended(follower)
        return None

    def _ended(self, follower: _Follower) -> RanksOutOfStep:
        name, status = f"rank {follower.index} of {self.rank.count}", follower.process.returncode
        if status < 0:
            return RanksOutOfStep(f"{name} was ended by {signal.Signals(-status).name}", killed=status == -signal.SIGKILL)
        return RanksOutOfStep(f"{name} ended with status {status}")

    def _forget_meeting(self) -> None:
        if self.rank.meeting is not None:
            shutil.rmtree(self.rank.meeting.parent, ignore_errors=True)

    # ------------------------------------------------------------ the sockets

    def _send(self, message: Down) -> None:
        if not self._followers:
            return
        data = frame(message)
        for follower in self._followers:
            try:
                follower.connection.sendall(data)
            except OSError as error:
                raise self._why_lost() or RanksOutOfStep(f"rank {follower.index} of {self.rank.count} cannot be told: {error}") from error

    def _receive(self, follower: _Follower) -> Up:
        payload = read_frame(follower.stream)
        if payload is None:
            raise self._why_lost() or RanksOutOfStep(f"rank {follower.index} of {self.rank.count} has closed its connection")
        return decode_up(payload)

    def _answers(self, kind: type[Answer]) -> list[Answer]:
        """Of everyone, so that none is left to be taken for another's. Raises ConfigError with the first sentence of one that failed."""
        answers = [self._receive(follower) for follower in self._followers]
        for follower, answer in zip(self._followers, answers, strict=True):
            if isinstance(answer, Failed):
                self._heard.set()
                raise ConfigError(f"rank {follower.index} of {self.rank.count}: {answer.message}", reason=answer.reason)
        return [expect(answer, kind) for answer in answers]


def _spawn(connection: socket.socket) -> RankProcess:
    number = connection.fileno()
    return subprocess.Popen([*RANK_COMMAND, "--fd", str(number)], pass_fds=[number], stdin=subprocess.DEVNULL)


class LeadingModel:
    """Rank 0's part of a model, computed together with the others'. Its logits are whole."""

    def __init__(self, model: Model, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks
        self._hidden: Tensor | None = None
        """Of the last forward pass."""
        self.cache_shape, self.vocab_size, self.operators = model.cache_shape, model.vocab_size, model.operators
        self._adapted = adaptable(model.linears())[0].linear

    def linears(self) -> list[FusedLinear]:
        """For adapters, beside rank 0's own."""
        return self._model.linears()

    def parts(self) -> dict[str, Part]:
        return self._model.parts()

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor], batch: AttentionBatch) -> Tensor:
        with self._ranks.in_step():
            side = self._adapted.adapters
            self._ranks.forward(ids, positions, batch, side.rows.slots if side else None, self.operators.collectives)
            self._hidden = self._model.forward(ids, positions, caches, batch)
        return self._hidden

    def logits(self, hidden: Tensor) -> Tensor:
        with self._ranks.in_step():
            self._ranks.logits(hidden, self.operators.collectives, as_computed=hidden is self._hidden)
            return self._model.logits(hidden)


def _end_process(why: RanksOutOfStep) -> None:
    """From the watching thread: the engine's own may be waiting for the lost rank, in a call that nothing interrupts."""
    log.error("%s; the engine ends with it", why)
    sys.stderr.flush()
    os._exit(EXIT_RANK_KILLED if why.killed else EXIT_RANK_LOST)
