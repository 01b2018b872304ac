"""One pod as one local process: started, asked how it is, restarted when it ends or hangs, ended gracefully.

Owns the process and what is known of it. Does not know why it exists or what replaces it: executor.py decides that.

    pending → (fetching the weights) → starting → ready ⇄ not ready → ended → waiting (backoff) → starting …
                                        end() from anywhere → SIGTERM → grace → SIGKILL → gone
"""

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pagoda_operator.local.backoff import Backoff
from pagoda_operator.local.condition import Condition
from pagoda_operator.local.machine import Launch
from pagoda_operator.local.probe import Answer, Prober
from pagoda_operator.local.processes import LARGEST_LOG_BYTES, ChildProcess, describe_exit, last_lines, plain, rotate
from pagoda_operator.local.template import PodTemplate, Probe
from pagoda_operator.observed.terminations import Cause, cause_in, cause_of_next_try
from pagoda_operator.observed.world import PodView

log = logging.getLogger(__name__)

ASK_UNTIL_READY_S = 0.1
ASK_WHEN_READY_S = 0.5
HUNG_GRACE_S = 5.0

Step = Literal["fetch", "worker"]


class NotLaunchable(Exception):
    """Nothing to start yet: a model folder is missing. Tried again with backoff, as the folder may appear."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Pod:
    def __init__(
        self,
        name: str,
        template: PodTemplate,
        identity: str,
        *,
        cwd: Path,
        log_file: Path,
        prober: Prober,
        prepare: Callable[[PodTemplate, str], Launch],
        changed: Callable[[], None],
        tell: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self.template = template
        self.identity = identity
        self.log_file = log_file
        self.now = Condition()
        self._last_ends: dict[Step, Cause] = {}
        """Until a process of that step is past them."""
        self.ending = False
        self.told_to_end = False
        self.gone = False
        self._cwd = cwd
        self._prober = prober
        self._prepare = prepare
        self._changed = changed
        self._tell = tell
        self._stop = asyncio.Event()
        self._unwell = asyncio.Event()
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        rotate(self.log_file)
        self.now.created_at = datetime.now(UTC)
        self._task = asyncio.create_task(self._live(), name=f"pod {self.name}")

    def retry(self) -> None:
        """Earlier failures are forgiven, and one that waits for its restart is started now: somebody may have mended the cause."""
        if not self.now.ready:
            self._set(backoff=Backoff(), last_exit=None)
            self._last_ends.clear()
            self._hurry.set()

    def note_routed(self) -> None:
        """The routers count it, as far as they were asked."""
        if self.now.ready and self.now.routed_at is None:
            self._set(routed_at=datetime.now(UTC))

    def mark_ending(self) -> None:
        """No new requests from now on; the process is told by end()."""
        self.ending = True
        self._changed()

    def end(self) -> None:
        self.ending = self.told_to_end = True
        self._stop.set()

    async def join(self) -> None:
        if self._task is not None:
            await self._task

    def view(self) -> PodView:
        return self.now.view(self.name, self.template, ending=self.ending)

    async def _live(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                await self._run_once()
                if self._stop.is_set():
                    break
                self._set(backoff=self.now.backoff.after_run(time.monotonic() - began))
                await self._wait_to_restart()
        except Exception:
            log.exception("pod %s: the loop that keeps it alive failed", self.name)
            self._set(phase="Failed", reason="Error", message="the supervisor failed to run this pod: see its log", ready=False)
        finally:
            self.gone = True
            self._changed()

    async def _run_once(self) -> None:
        """One life of the process, from its start to its end."""
        try:
            launch = self._prepare(self.template, self.name)
        except NotLaunchable as error:
            self._set(phase="Pending", reason=error.reason, message=str(error))
            return
        rotate(self.log_file, keep_up_to_bytes=LARGEST_LOG_BYTES)
        self._unwell.clear()
        self._set(progress=None, bytes_done=None, bytes_total=None, served=False, launch=None, weights_at=None, engine_failures=0)
        self._say(Cause())
        if launch.fetch is not None and not await self._fetched(launch.fetch):
            return
        self._set(phase="Running", progress=None)
        self._say(Cause())
        self._note_exit(await self._run_process(launch, self._watch(launch), launch), "worker")

    async def _fetched(self, launch: Launch) -> bool:
        """The step before: brings the weights, or ends this life with its last words."""
        self._set(phase="Pending")
        self._say(Cause("WeightsDownload"))
        status = await self._run_process(launch, self._watch_fetch(launch), None)
        if status != 0 or self._stop.is_set():
            self._note_exit(status, "fetch")
            return False
        self._last_ends.pop("fetch", None)
        return True

    async def _run_process(self, launch: Launch, watch: Coroutine[Any, Any, None], shown: Launch | None) -> int:
        """Until it ends, or is ended. `shown`: where routers find it."""
        child = await ChildProcess.start(launch.argv, launch.env, cwd=self._cwd, log=self.log_file)
        began = datetime.now(UTC)
        self._set(pid=child.pid, launch=shown, image_at=self.now.image_at or began, weights_at=None if shown is None else began)
        self._tell(self.name, f"{'fetch ' if shown is None else ''}started, pid {child.pid}")
        exited = asyncio.create_task(child.wait())
        stops = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self._unwell.wait())]
        watching = asyncio.create_task(watch)
        try:
            await asyncio.wait([exited, *stops], return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                await self._terminate(child, exited)
        finally:
            for task in (watching, *stops):
                task.cancel()
            await asyncio.gather(watching, *stops, return_exceptions=True)
        return await exited

    async def _terminate(self, child: ChildProcess, exited: "asyncio.Task[int]") -> None:
        child.terminate()
        # one that hangs has nothing to drain
        grace_s = min(self.template.grace_s, HUNG_GRACE_S) if self._unwell.is_set() else self.template.grace_s
        await asyncio.wait([exited], timeout=grace_s)
        if not exited.done():
            self._tell(self.name, f"still running {grace_s:g} s after SIGTERM: killed")
            child.kill()

    def _note_exit(self, status: int, step: Step) -> None:
        how = describe_exit(status)
        if self._stop.is_set():
            self._set(ready=False, phase="Succeeded" if status == 0 else "Failed", pid=None, last_exit=status)
            self._tell(self.name, f"ended with {how}")
            return
        reason, message = self._cause(status)
        self._last_ends[step] = Cause(reason, message)
        self._set(ready=False, phase="Failed", reason=reason, message=message, pid=None, progress=None, last_exit=status)
        self._tell(self.name, f"ended with {how}: {message}")

    def _cause(self, status: int) -> tuple[str, str]:
        """In the process's own words, where its last line is made for it."""
        if self._unwell.is_set():
            return "Error", self.now.message
        told = cause_in(next(iter(last_lines(self.log_file, 1)), "")) if status > 0 else None
        if told is None:
            return "Error", self._last_words(status)
        return ("FetchFailed" if told.reason == "WeightsDownload" else told.reason), told.message

    def _last_words(self, status: int) -> str:
        how = describe_exit(status)
        lines = last_lines(self.log_file, 1)
        if status == -signal.SIGKILL:
            return f"it was ended by {how}, as the kernel does when memory runs out"
        if not lines:
            return f"it ended with {how} and logged nothing"
        return plain(lines[0]) if status > 0 else f"it ended with {how}; its last words: {plain(lines[0])}"

    async def _wait_to_restart(self) -> None:
        backoff = self.now.backoff
        if backoff.loops and self.now.last_exit is not None and self.now.reason == "Error":
            self._set(reason="CrashLoopBackOff")
        self._hurry.clear()
        began = time.monotonic()
        await _first_of(self._stop, self._hurry, within_s=backoff.delay_s)
        if not self._stop.is_set():
            self._set(restarts=self.now.restarts + 1)
            self._tell(self.name, f"restart {self.now.restarts}, after {time.monotonic() - began:.1f} s")

    async def _watch(self, launch: Launch) -> None:
        """Keeps `ready` true to the process's own word, and calls it unwell when it does not start or does not move."""
        startup, liveness = self.template.startup, self.template.liveness
        started, good_since = False, time.monotonic()
        while True:
            answer = await self._ask(launch, self.template.readiness)
            self._hear(answer)
            if answer.ok and not started:
                started, good_since = True, time.monotonic()
            probe = liveness if started else startup
            if probe is not None:
                health = answer if probe == self.template.readiness else await self._ask(launch, probe)
                now = time.monotonic()
                good_since = now if health.ok else good_since
                if now - good_since > probe.patience_s:
                    self._give_up(health, now - good_since, started=started)
                    return
            await asyncio.sleep(ASK_WHEN_READY_S if answer.ok else ASK_UNTIL_READY_S)

    async def _watch_fetch(self, launch: Launch) -> None:
        """How far it is; that it ended is seen from its exit."""
        port = next(iter(launch.ports.values()))
        while True:
            answer = await self._prober.ask(launch.host, port, "/ready")
            if answer.reason:
                self._say(Cause(answer.reason, answer.message), answer.bytes_done)
                self._set(progress=answer.progress, bytes_done=answer.bytes_done, bytes_total=answer.bytes_total)
            await asyncio.sleep(ASK_WHEN_READY_S)

    def _give_up(self, health: Answer, lasted_s: float, *, started: bool) -> None:
        what = "unhealthy" if started else "not started"
        self._set(ready=False, message=f"{what} for {lasted_s:.0f} s, restarted: {health.message}")
        self._unwell.set()

    def _ask(self, launch: Launch, probe: Probe | None) -> Awaitable[Answer]:
        if probe is None:
            return _yes()
        return self._prober.ask(launch.host, launch.ports[probe.port], probe.path)

    def _hear(self, answer: Answer) -> None:
        if answer.ok and not self.now.ready:
            self._tell(self.name, "ready")
        elif not answer.ok and self.now.ready:
            self._tell(self.name, f"no longer ready: {answer.message}")
        if answer.ok and not self.now.ready:
            self._set(engine_at=datetime.now(UTC), routed_at=None)
        served, capacity = self.now.served or answer.ok, answer.capacity or self.now.capacity
        if answer.ok:
            self._last_ends.clear()
        self._set(ready=answer.ok, served=served, capacity=capacity, engine_failures=answer.engine_failures)
        self._say(Cause(answer.reason, answer.message), answer.bytes_done)
        self._set(progress=answer.progress, bytes_done=answer.bytes_done, bytes_total=answer.bytes_total)

    def _say(self, said: Cause, bytes_done: int | None = None) -> None:
        """What a process says of itself, or how one before it ended."""
        for before in self._last_ends.values():
            said = cause_of_next_try(before, said, bytes_done=bytes_done)
        self._set(reason=said.reason, message=said.message)

    def _set(self, **changes: object) -> None:
        before = {name: getattr(self.now, name) for name in changes}
        for name, value in changes.items():
            setattr(self.now, name, value)
        if before != changes:
            self._changed()


async def _first_of(*events: asyncio.Event, within_s: float) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def _yes() -> Answer:
    return Answer(True)
