"""The engine's process: loads the model, then turns the engine between its inbox and its sender. Knows no network and no clients.

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
from typing import BinaryIO

from pagoda_worker.channel import (
    LENGTH,
    Down,
    Loading,
    Ready,
    Start,
    Unusable,
    Up,
    decode_down,
    pack,
)
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine_loop import EngineLike, EngineLoop
from pagoda_worker.errors import (
    EXIT_RANK_KILLED,
    EXIT_RANK_LOST,
    RanksOutOfStep,
    WorkerError,
    gigabytes,
)
from pagoda_worker.facts import ModelFacts
from pagoda_worker.lifeline import die_with_parent, leave_signals_to_parent
from pagoda_worker.logs import log_to_stderr

EXIT_UNUSABLE = 2
NEWS_INTERVAL_S = 0.2

log = logging.getLogger("pagoda_worker.engine_process")  # __name__ is __main__ here


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
