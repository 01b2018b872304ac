"""The engine between its inbox and its sender: takes what arrived, turns the engine one step, tells what came of it. Knows neither sockets
nor processes; called by the process of the engine."""

import gc
import logging
import queue
import time
from collections.abc import Callable
from typing import Protocol

from pagoda_worker.adapter_desk import READING_S, AdapterDesk, HasAdapters
from pagoda_worker.channel import (
    HEARTBEAT_S,
    Cancelled,
    Down,
    Drafted,
    Idle,
    LoadAdapter,
    Loading,
    Rejected,
    Sleep,
    Slept,
    Stepped,
    Submitted,
    UnloadAdapter,
    Up,
    Wake,
    Woke,
)
from pagoda_worker.errors import CannotSleep, RequestRefused, WakeFailed, WorkerError
from pagoda_worker.facts import ModelFacts
from pagoda_worker.request import EngineState, Request, StepOutput

MAX_FAILED_STEPS = 3
"""In a row; then the process gives up and the front starts a fresh one."""

log = logging.getLogger(__name__)


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
