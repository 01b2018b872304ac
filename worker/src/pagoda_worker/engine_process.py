"""The engine's process: takes messages from the front, turns the engine, sends one message per step. Knows no network and no clients.

Started by the front as `python -m pagoda_worker.engine_process --fd N`, N being its end of a socket pair. It lives exactly as long as the
front's end of that pair: end of file there ends the process, whatever the engine is doing.
"""

import argparse
import contextlib
import gc
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Protocol

from pagoda_worker.adapter_desk import READING_S, AdapterDesk, HasAdapters
from pagoda_worker.channel import (
    HEARTBEAT_S,
    LENGTH,
    Cancelled,
    Down,
    Drafted,
    Idle,
    LoadAdapter,
    Loading,
    Ready,
    Rejected,
    Sleep,
    Slept,
    Start,
    Stepped,
    Submitted,
    UnloadAdapter,
    Unusable,
    Up,
    Wake,
    Woke,
    decode_down,
    pack,
)
from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import (
    EXIT_RANK_KILLED,
    EXIT_RANK_LOST,
    CannotSleep,
    RanksOutOfStep,
    RequestRefused,
    WakeFailed,
    WorkerError,
    gigabytes,
)
from pagoda_worker.lifeline import die_with_parent, leave_signals_to_parent
from pagoda_worker.logs import log_to_stderr
from pagoda_worker.request import EngineState, ModelFacts, Request, StepOutput

EXIT_UNUSABLE = 2
NEWS_INTERVAL_S = 0.2
MAX_FAILED_STEPS = 3
"""In a row; then the process gives up and the front starts a fresh one."""

log = logging.getLogger("pagoda_worker.engine_process")  # __name__ is __main__ here


class EngineLike(HasAdapters, Protocol):
    """What this process needs of pagoda_worker.engine.Engine; tests put a scripted one here."""

    @property
    def facts(self) -> ModelFacts: ...
    @property
    def has_work(self) -> bool: ...
    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str, sequence: int | None = None) -> None: ...
    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None: ...
    def abandon(self, detail: str) -> None: ...
    def step(self) -> StepOutput: ...
    def idle_state(self) -> EngineState: ...
    @property
    def sleep_level(self) -> int: ...
    def sleep(self, level: int) -> int: ...
    def wake(self) -> None: ...


class EngineLoop:
    """The engine between its inbox and its sender."""

    def __init__(self, engine: EngineLike, inbox: "queue.SimpleQueue[Down]", send: Callable[[Up], None]) -> None:
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._desk = AdapterDesk(engine, send)
        self._failed_steps = 0
        self._asked_level = 0
        """Of the sleep that was asked for and has not begun; 0: none."""

    def run(self) -> None:
        while True:
            self.turn()

    def turn(self) -> None:
        """One step with work, one heartbeat without."""
        idle_s = READING_S if self._desk.reading else HEARTBEAT_S
        self._take_messages(wait_s=0.0 if self._engine.has_work else idle_s)
        self._desk.tell()
        if self._engine.has_work:
            self._step()
        elif self._asked_level:
            self._sleep()
        else:
            self._send(Idle(self._engine.idle_state()))

    def _take_messages(self, wait_s: float) -> None:
        try:
            self._obey(self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait())
            while True:
                self._obey(self._inbox.get_nowait())
        except queue.Empty:
            return

    def _obey(self, message: Down) -> None:
        if isinstance(message, Submitted):
            for request in message.requests:
                self._submit(request)
        elif isinstance(message, Cancelled):
            self._engine.cancel(message.request_id, message.sequence)
        elif isinstance(message, Drafted):
            self._engine.draft(message.request_id, message.sequence, message.position, message.token_ids)
        elif isinstance(message, Sleep):
            self._asked_level = message.level  # once nothing is left to do: endings may have to be told first
        elif isinstance(message, Wake):
            self._wake()
        elif isinstance(message, LoadAdapter):
            unread = self._engine.sleep_level > 0 and not self._desk.opened  # shapes are checked against a model that was read
            problem = self._wake() if unread else ""
            self._desk.load(message, problem)
        elif isinstance(message, UnloadAdapter):
            self._desk.unload(message)

    def _sleep(self) -> None:
        level, self._asked_level = self._asked_level, 0
        self._send(Loading("putting the engine to sleep"))
        try:
            freed, problem = self._engine.sleep(level), ""
        except CannotSleep as error:
            freed, problem = 0, str(error)
        log.info("asleep at level %d, %d bytes freed%s", self._engine.sleep_level, freed, f": {problem}" if problem else "")
        self._send(Slept(self._engine.idle_state(), freed, problem))

    def _wake(self) -> str:
        """Why it still sleeps; empty when it does not."""
        began, asleep = time.monotonic(), self._engine.sleep_level
        problem = ""
        if asleep:
            self._send(Loading("waking the engine"))
            try:
                first = not self._engine.facts.kernels
                self._engine.wake()
                if first:
                    log.info("kernels: %s", self._engine.facts.kernels)
                gc.collect()
                gc.freeze()
            except WorkerError as error:
                problem = str(error)
            log.info("woken from level %d in %.2f s%s", asleep, time.monotonic() - began, f": {problem}" if problem else "")
        load_us = int((time.monotonic() - began) * 1e6) if asleep else 0
        self._send(Woke(self._engine.facts, self._engine.idle_state(), load_us, problem))
        return problem

    def _submit(self, request: Request) -> None:
        if self._engine.sleep_level and (problem := self._wake()):
            self._send(Rejected(request.request_id, WakeFailed.__name__, f"the model sleeps and cannot be woken: {problem}", ""))
            return
        try:
            self._engine.submit(request)
        except RequestRefused as refusal:
            self._send(Rejected(request.request_id, type(refusal).__name__, str(refusal), refusal.param))

    def _step(self) -> None:
        try:
            output = self._engine.step()
        except Exception as error:  # whatever a step raises must cost its requests, not the process
            self._failed_steps += 1
            if self._failed_steps >= MAX_FAILED_STEPS:
                raise
            # Nobody knows which request broke the step, so all that the engine holds end here; the next ones get a clean engine.
            log.exception("a step failed; all requests end with an engine error")
            self._engine.abandon(f"a step of the engine failed ({type(error).__name__}); ask again")
            return
        if any(update.token_ids for update in output.updates):
            self._failed_steps = 0
        for refused in output.rejections:
            self._send(Rejected(refused.request_id, refused.error, refused.message, refused.param))
        self._send(Stepped(output))


def read_messages(stream: BinaryIO, inbox: "queue.SimpleQueue[Down]") -> None:
    """The reader thread. Returns when the front is gone."""
    with contextlib.suppress(OSError):
        while len(head := stream.read(LENGTH.size)) == LENGTH.size:
            (length,) = LENGTH.unpack(head)
            payload = stream.read(length)
            if len(payload) < length:
                return
            inbox.put(decode_down(payload))


def _read_until_the_front_is_gone(stream: BinaryIO, inbox: "queue.SimpleQueue[Down]") -> None:
    try:
        read_messages(stream, inbox)
    except Exception:  # a message that cannot be read: there is nobody to tell, and going on would lose requests
        log.exception("a message of the front could not be read")
    os._exit(0)


class LoadingNews:
    """Called by the loader at every tensor; tells the front a few times a second, and of every new stage."""

    def __init__(self, send: Callable[[Up], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._stage = ""
        self._next_at = 0.0

    def __call__(self, stage: str, bytes_done: int = 0, bytes_total: int = 0) -> None:
        now = self._clock()
        if stage != self._stage or now >= self._next_at:
            self._stage, self._next_at = stage, now + NEWS_INTERVAL_S
            self._send(Loading(stage, bytes_done, bytes_total))


Build = Callable[[EngineConfig, LoadingNews], EngineLike]


def serve(connection: socket.socket, build: Build) -> int:
    """Loads and runs until the front goes; returns the exit status when loading is refused."""
    inbox: queue.SimpleQueue[Down] = queue.SimpleQueue()
    threading.Thread(target=_read_until_the_front_is_gone, args=(connection.makefile("rb"), inbox), name="inbox", daemon=True).start()

    def send(message: Up) -> None:
        connection.sendall(pack(message))

    start = inbox.get()
    if not isinstance(start, Start):
        raise TypeError(f"the front's first message is {type(start).__name__}, not Start")
    send(Loading("reading the model"))
    began = time.monotonic()
    try:
        engine = build(start.config, LoadingNews(send))
    except WorkerError as error:
        send(Unusable(str(error), error.reason))
        return EXIT_UNUSABLE
    gc.collect()
    gc.freeze()
    log.info(loaded_line(start.config, engine.facts, time.monotonic() - began))
    if engine.facts.kernels:
        log.info("kernels: %s", engine.facts.kernels)
    send(Ready(engine.facts, engine.idle_state(), engine.adapters_state() if engine.facts.adapter_slots else None))
    EngineLoop(engine, inbox, send).run()
    return 0


def loaded_line(config: EngineConfig, facts: ModelFacts, took_s: float) -> str:
    if not facts.load_s:
        return f"{facts.architecture} from {config.model_dir} is sized up on {facts.device}; its weights are read with the first request"
    weights = gigabytes(facts.checkpoint_bytes)
    speed = f", {weights} of weights at {facts.checkpoint_bytes / facts.weights_s / 1e9:.2f} GB/s" if facts.weights_s else ""
    form = "" if facts.quantization == "none" else f", weights in {facts.quantization}"
    return f"loaded {facts.architecture} from {config.model_dir} in {took_s:.1f} s on {facts.device}{form}{speed}"


def run_process(build: Build) -> None:
    """The whole process around `build`; tests call it with a scripted engine."""
    log_to_stderr(os.environ.get("PAGODA_LOG_LEVEL", "info"))
    parser = argparse.ArgumentParser(prog="pagoda_worker.engine_process")
    parser.add_argument("--fd", type=int, required=True, help="this process's end of the front's socket pair")
    die_with_parent()
    leave_signals_to_parent()
    status = 1
    try:
        status = serve(socket.socket(fileno=parser.parse_args().fd), build)
    except BrokenPipeError:
        status = 0
    except RanksOutOfStep as why:
        log.error("%s; the engine ends with it", why)
        status = EXIT_RANK_KILLED if why.killed else EXIT_RANK_LOST
    except Exception:  # the outermost line: one structured line instead of a bare traceback
        log.exception("the engine process ends")
    sys.stderr.flush()
    os._exit(status)  # not sys.exit: the reader thread and CUDA's own threads have nothing left to say


def _build_engine(config: EngineConfig, news: LoadingNews) -> EngineLike:
    from pagoda_worker.engine import Engine  # here, so that a wrong command line costs no import of torch

    return Engine(config, news=news)


if __name__ == "__main__":
    run_process(_build_engine)
