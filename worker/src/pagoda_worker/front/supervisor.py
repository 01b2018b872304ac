"""Keeps one engine running: starts it, watches its progress clock, ends a hung one, starts a dead one again with backoff.

Tells its listener (the switchboard) what the engine says and how it fares; knows no sessions. Run as one task by the front.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from pagoda_worker.channel import (
    AdapterDone,
    Idle,
    LoadAdapter,
    Loading,
    Ready,
    Rejected,
    Sleep,
    Slept,
    Stepped,
    UnloadAdapter,
    Unusable,
    Up,
    Wake,
    Woke,
)
from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import EXIT_RANK_KILLED, AdapterError, CannotSleep, ConfigError, gibibytes, gigabytes
from pagoda_worker.facts import AdapterFacts, AdaptersState, ModelFacts
from pagoda_worker.front.answers import Answers
from pagoda_worker.front.engine_link import ENGINE_COMMAND, EngineLink, describe_exit
from pagoda_worker.front.progress import Backoff, ProgressClock
from pagoda_worker.loading.limits import Limits
from pagoda_worker.readiness import Readiness, Reason
from pagoda_worker.request import EngineState, Request, StepOutput

WATCHES_PER_STALL = 20
KILL_AFTER_STALLS = 2.0

log = logging.getLogger(__name__)


class EngineListener(Protocol):
    def engine_ready(self, facts: ModelFacts, state: EngineState) -> None: ...
    def engine_stepped(self, output: StepOutput) -> None: ...
    def engine_idle(self, state: EngineState) -> None: ...
    def engine_rejected(self, rejected: Rejected) -> None: ...
    def engine_stalled(self, reason: str) -> None: ...
    def adapters_told(self, state: AdaptersState) -> None: ...
    def engine_moving(self) -> None:
        """After engine_stalled: tokens move again."""

    def engine_down(self, reason: str) -> None:
        """The process is gone with all its requests. engine_ready follows when a new one has loaded."""


class EngineSupervisor:
    """`run` until cancelled; raises ConfigError when the engine says that starting again cannot help."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        stall_s: float,
        command: Sequence[str] = ENGINE_COMMAND,
        clock: Callable[[], float] = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        self._config = config
        self._stall_s = stall_s
        self._command = command
        self.backoff = Backoff()
        self._clock = clock
        self._link: EngineLink | None = None
        self._served_from: float | None = None
        """When the engine was ready: the time that it took to load says nothing for its health."""
        self._progress: ProgressClock | None = None
        self._slept: Answers[Slept] = Answers()
        self._woke: Answers[Woke] = Answers()
        self._adapters_done: dict[str, Answers[AdapterDone]] = {}
        """By name."""
        self._hung: str | None = None
        self._unusable: Unusable | None = None
        self._limits = limits or Limits()
        self._setback: tuple[Reason, str] | None = None
        """How the engine before this one ended; forgotten when one is ready."""
        self._failures = 0
        """Engines in a row that ended before they served."""
        self._bytes: tuple[int, int] | None = None
        self.sleep_level = 0
        """0: awake, or no engine."""
        self._stage = "starting the engine process"
        self.trouble: str | None = self._stage
        """Why tokens do not move, one sentence; None while they do or the engine is idle and answers."""

    @property
    def readiness(self) -> Readiness | None:
        """Why there is no engine that serves, and how far it is; None when there is one."""
        if self._unusable is not None:  # on the way out, and whoever asks just now must not hear of a crash
            return Readiness(ready=False, reason=cast(Reason, self._unusable.reason or "EngineCrash"), message=self._unusable.message)
        if self._progress:
            return Readiness(ready=False, reason="Stalled", message=self.trouble) if self.trouble else None
        stage = self._stage  # no seconds: the sentence is copied into a status, which must not change for nothing
        done, total = self._bytes or (None, None)
        if done is not None and total is not None:
            stage = f"{self._stage}: {gigabytes(done)} of {gigabytes(total)}"
        reason, before = self._setback or ("Loading", "")
        message = f"{before}; now {stage}" if before else stage
        return Readiness(ready=False, reason=reason, message=message, bytes_done=done, bytes_total=total, engine_failures=self._failures)

    @property
    def engine_pid(self) -> int | None:
        return self._link.pid if self._link else None

    def submit(self, request: Request) -> None:
        if self._link and self._progress:
            self._progress.submitted(len(request.prompt_ids) + len(request.resume_ids))
            self._link.submit(request)

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        if self._link:
            self._link.cancel(request_id, sequence)

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None:
        if self._link:
            self._link.draft(request_id, sequence, position, token_ids)

    async def sleep(self, level: int) -> int:
        """Asleep when it returns; the bytes freed. The caller has seen to it that nothing runs. Raises CannotSleep."""
        self._link_that_serves().send(Sleep(level))
        return (await self._slept.next()).freed_bytes

    async def wake(self) -> int:
        """Awake when it returns; the microseconds that it took. Raises CannotSleep."""
        self._link_that_serves().send(Wake())
        return (await self._woke.next()).load_us

    async def load_adapter(self, name: str, folder: Path) -> AdapterFacts:
        """New requests may name it when this returns, also of an engine that is started again. Raises AdapterError, CannotSleep."""
        link = self._link_that_serves()
        waiting = self._adapters_done.setdefault(name, Answers())
        link.send(LoadAdapter(name, str(folder)))
        done = await waiting.next_one()
        assert done.facts is not None
        self._config = replace(self._config, adapters={**self._config.adapters, name: folder})
        return done.facts

    async def unload_adapter(self, name: str) -> None:
        """Raises AdapterError, CannotSleep."""
        link = self._link_that_serves()
        waiting = self._adapters_done.setdefault(name, Answers())
        link.send(UnloadAdapter(name))
        await waiting.next_one()
        self._config = replace(self._config, adapters={each: at for each, at in self._config.adapters.items() if each != name})

    def _link_that_serves(self) -> EngineLink:
        if self._link is None or self._progress is None:
            raise CannotSleep(f"there is no engine to ask: {self.trouble or self._stage}")
        return self._link

    async def run(self, listener: EngineListener) -> None:
        while True:
            self._served_from = None
            reason = await self._one_life(listener)
            if self._unusable is not None:
                raise ConfigError(self._unusable.message, reason=self._unusable.reason)
            self._failures = 0 if self._served_from is not None else self._failures + 1
            wait_s = self.backoff.after(0.0 if self._served_from is None else self._clock() - self._served_from)
            self._enter_stage(f"starting it again in {wait_s:.1f} s")
            self.trouble = f"{reason}; {self._stage}"
            log.error("%s", self.trouble)
            listener.engine_down(reason)
            await asyncio.sleep(wait_s)
            self._enter_stage("starting the engine process")

    async def _one_life(self, listener: EngineListener) -> str:
        """From start to end of one engine process; returns how it ended, as a sentence."""
        self._hung = None
        kills = self._limits.memory_kills()
        link = self._link = await EngineLink.open(self._config, self._command)
        log.info("engine process %d started", link.pid)
        watch = asyncio.create_task(self._watch(link, listener), name="engine-watch")
        status: int | None = None
        try:
            async for message in link.messages():
                self._hear(message, listener)
        finally:
            watch.cancel()
            self._link = self._progress = None
            self.sleep_level = 0
            self.trouble = self.trouble or "the engine process is ending"
            self._slept.fail(CannotSleep("the engine process ended meanwhile"))
            self._woke.fail(CannotSleep("the engine process ended meanwhile"))
            for waiting in self._adapters_done.values():
                waiting.fail(CannotSleep("the engine process ended meanwhile"))
            status = await link.close()
        killed_for_memory = status in (-signal.SIGKILL, EXIT_RANK_KILLED) and self._limits.memory_kills() > kills
        self._setback = self._explain(status, link.last_line, killed_for_memory=killed_for_memory)
        return self._hung or describe_exit(status)

    def _explain(self, status: int, last_line: str, *, killed_for_memory: bool) -> tuple[Reason, str]:
        how = self._hung or describe_exit(status)
        if killed_for_memory:
            limit = self._limits.memory_bytes()
            bound = f", the limit is {gibibytes(limit)}" if limit is not None else ""
            return "OutOfMemory", f"{how}: the kernel found no memory for it{bound}; lower maxModelLen or maxRunning, or raise the limit"
        return "EngineCrash", f"{how}; its last line: {last_line}" if last_line else how

    def _hear(self, message: Up, listener: EngineListener) -> None:
        if isinstance(message, Stepped):
            self._heard_state(message.output.state, listener)
            if message.output.adapters is not None:
                listener.adapters_told(message.output.adapters)
            listener.engine_stepped(message.output)
        elif isinstance(message, Idle):
            self._heard_state(message.state, listener)
            listener.engine_idle(message.state)
        elif isinstance(message, Ready):
            self._served_from = self._clock()
            self._progress = ProgressClock(stall_s=self._stall_s, max_batch_tokens=message.facts.max_batch_tokens, now=self._clock())
            self.trouble = self._setback = self._bytes = None
            self.sleep_level = message.state.sleep_level
            if message.adapters is not None:
                listener.adapters_told(message.adapters)
            listener.engine_ready(message.facts, message.state)
        elif isinstance(message, AdapterDone):
            listener.adapters_told(message.state)
            waiting = self._adapters_done[message.name]
            waiting.fail_one(AdapterError(message.problem)) if message.problem else waiting.give_one(message)
        elif isinstance(message, Slept):
            self._heard_state(message.state, listener)
            listener.engine_idle(message.state)
            self._slept.fail(CannotSleep(message.problem)) if message.problem else self._slept.give(message)
        elif isinstance(message, Woke):
            self._heard_state(message.state, listener)
            self._hear_woke(message, listener)
        elif isinstance(message, Loading) and self._progress:
            self._progress.moves_weights(self._clock())
        elif isinstance(message, Loading):
            if message.stage != self._stage:
                self._enter_stage(message.stage)
            self._bytes = (message.bytes_done, message.bytes_total) if message.bytes_total else None
        elif isinstance(message, Rejected):
            listener.engine_rejected(message)
        elif isinstance(message, Unusable):
            self._unusable = message

    def _hear_woke(self, message: Woke, listener: EngineListener) -> None:
        if not message.problem:
            listener.engine_ready(message.facts, message.state)
            self._woke.give(message)
            return
        # Until its next heartbeat: routers look elsewhere meanwhile, and then try again.
        self.trouble = f"the model sleeps and cannot be woken: {message.problem}"
        listener.engine_stalled(self.trouble)
        self._woke.fail(CannotSleep(message.problem))

    def _heard_state(self, state: EngineState, listener: EngineListener) -> None:
        if self._progress is None:
            return
        self.sleep_level = state.sleep_level
        self._progress.heard(state, self._clock())
        if self.trouble is not None and self._progress.stalled_reason(self._clock()) is None:
            self.trouble = None
            log.warning("tokens move again, or the engine answers")
            listener.engine_moving()

    async def _watch(self, link: EngineLink, listener: EngineListener) -> None:
        while True:
            await asyncio.sleep(self._stall_s / WATCHES_PER_STALL)
            if self._progress is None:
                continue
            now = self._clock()
            reason = self._progress.stalled_reason(now)
            if reason is not None and self.trouble is None:
                self.trouble = reason
                log.error("%s", reason)
                listener.engine_stalled(reason)
            hung = self._progress.stalled_reason(now, times=KILL_AFTER_STALLS)
            if hung is not None:
                self._hung = f"{hung} and it was ended"
                log.error("%s; its stacks follow", hung)
                await link.kill(with_stacks=True)
                return

    def _enter_stage(self, stage: str) -> None:
        self._stage = stage
        self._bytes = None
        self.trouble = f"{self._setback[1]}; now {stage}" if self._setback else stage
