"""Keeps one engine running: starts it, watches its progress clock, ends a hung one, starts a dead one again with backoff.

Tells its listener (the switchboard) what the engine says and how it fares; knows no sessions. Run as one task by the front.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from pagoda_worker.channel import Idle, Loading, Ready, Rejected, Stepped, Unusable, Up
from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.front.engine_link import ENGINE_COMMAND, EngineLink, describe_exit
from pagoda_worker.front.progress import Backoff, ProgressClock
from pagoda_worker.request import EngineState, ModelFacts, Request, StepOutput

WATCHES_PER_STALL = 20
KILL_AFTER_STALLS = 2.0

log = logging.getLogger(__name__)


class EngineListener(Protocol):
    def engine_ready(self, facts: ModelFacts, state: EngineState) -> None: ...
    def engine_stepped(self, output: StepOutput) -> None: ...
    def engine_idle(self, state: EngineState) -> None: ...
    def engine_rejected(self, rejected: Rejected) -> None: ...
    def engine_stalled(self, reason: str) -> None: ...
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
    ) -> None:
        self._config = config
        self._stall_s = stall_s
        self._command = command
        self.backoff = Backoff()
        self._clock = clock
        self._link: EngineLink | None = None
        self._progress: ProgressClock | None = None
        self._hung: str | None = None
        self._unusable: str | None = None
        self._stage = "starting the engine process"
        self._stage_since = clock()
        self.trouble: str | None = self._stage
        """Why tokens do not move, one sentence; None while they do or the engine is idle and answers."""

    @property
    def loading(self) -> str:
        """Stage and seconds while there is no loaded engine, else empty."""
        return "" if self._progress else f"{self._stage}, {self._clock() - self._stage_since:.0f} s"

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

    async def run(self, listener: EngineListener) -> None:
        while True:
            began = self._clock()
            reason = await self._one_life(listener)
            if self._unusable is not None:
                raise ConfigError(self._unusable)
            wait_s = self.backoff.after(self._clock() - began)
            self._enter_stage(f"{reason}; starting it again in {wait_s:.1f} s")
            log.error("%s", self._stage)
            listener.engine_down(reason)
            await asyncio.sleep(wait_s)
            self._enter_stage("starting the engine process")

    async def _one_life(self, listener: EngineListener) -> str:
        """From start to end of one engine process; returns how it ended, as a sentence."""
        self._hung = None
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
            status = await link.close()
        return self._hung or describe_exit(status)

    def _hear(self, message: Up, listener: EngineListener) -> None:
        if isinstance(message, Stepped):
            self._heard_state(message.output.state, listener)
            listener.engine_stepped(message.output)
        elif isinstance(message, Idle):
            self._heard_state(message.state, listener)
            listener.engine_idle(message.state)
        elif isinstance(message, Ready):
            self._progress = ProgressClock(stall_s=self._stall_s, max_batch_tokens=message.facts.max_batch_tokens, now=self._clock())
            self.trouble = None
            listener.engine_ready(message.facts, message.state)
        elif isinstance(message, Loading):
            self._enter_stage(message.stage)
        elif isinstance(message, Rejected):
            listener.engine_rejected(message)
        elif isinstance(message, Unusable):
            self._unusable = message.message

    def _heard_state(self, state: EngineState, listener: EngineListener) -> None:
        if self._progress is None:
            return
        self._progress.heard(state, self._clock())
        if self.trouble is not None and self._progress.stalled_reason(self._clock()) is None:
            self.trouble = None
            log.warning("tokens move again")
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
        self._stage_since = self._clock()
        self.trouble = stage
