"""Several models of one worker that share a device by turns: requests of models that sleep wait here, and residency.py's moves are made.

Stands between each model's switchboard and its supervisor. Knows neither sockets nor wire. Run as one task by __main__.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pagoda_worker.channel import Rejected
from pagoda_worker.errors import CannotSleep, ConfigError, RequestRefused, WakeFailed, gibibytes
from pagoda_worker.facts import AdapterFacts, ModelFacts
from pagoda_worker.front.answers import Answers
from pagoda_worker.front.residency import Hold, Move, Release, ResidentView, Sleep, Wake, next_move
from pagoda_worker.request import Request

LOOK_AGAIN_S = 0.05
"""While a model waits for room: endings and patience are looked for this often."""
AFTER_FAILURE_S = 1.0
ON_CPU, ON_DEVICE = 2, 1
"""Sleep levels: the one that frees what the models share."""

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What a resident asks of its supervisor."""

    sleep_level: int

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str, sequence: int | None = None) -> None: ...
    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None: ...
    async def sleep(self, level: int) -> int: ...
    async def wake(self) -> int: ...
    async def load_adapter(self, name: str, folder: Path) -> AdapterFacts: ...
    async def unload_adapter(self, name: str) -> None: ...


class Calls(Protocol):
    """What a resident asks of its switchboard."""

    facts: ModelFacts | None

    @property
    def open_calls(self) -> int: ...
    def is_open(self, engine_id: str) -> bool: ...
    def engine_rejected(self, rejected: Rejected) -> None: ...


class Resident:
    """One model. To its switchboard it is the engine: what is submitted reaches the engine at once, or in order when its turn has come."""

    def __init__(self, name: str, engine: Engine, changed: Callable[[], None], clock: Callable[[], float]) -> None:
        self.name = name
        self.held = False
        self._falls_asleep = False
        self._engine = engine
        self._changed = changed
        self._clock = clock
        self._calls: Calls | None = None
        self._waiting: list[tuple[Request, float]] = []
        self._wished_at: float | None = None
        """When a Wake came that waits."""
        self._woken: Answers[int] = Answers()
        self._used_at = clock()

    def attach(self, calls: Calls) -> None:
        """Before the first submit."""
        self._calls = calls

    # ---- for the switchboard and the service

    def submit(self, request: Request) -> None:
        self._used_at = self._clock()
        if not (self.held or self._falls_asleep or self._waiting) and self._engine.sleep_level == 0:
            self._engine.submit(request)
            return
        self._waiting.append((request, self._used_at))
        self._changed()

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        """One that waits here never ran, so it is answered here; of several sequences all go, since none has begun."""
        for at, (request, _) in enumerate(self._waiting):
            if request.request_id == request_id:
                del self._waiting[at]
                # Not at once: the switchboard is in the middle of what it does with its calls, and may forget this one itself.
                asyncio.get_running_loop().call_soon(self._refuse, request_id, RequestRefused, "it was cancelled before its model woke")
                return
        self._engine.cancel(request_id, sequence)

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None:
        self._engine.draft(request_id, sequence, position, token_ids)

    async def sleep(self, level: int) -> int:
        """What comes meanwhile waits here: the engine would wake by itself for it, and nobody would have made room. Raises CannotSleep."""
        self._falls_asleep = True
        try:
            return await self._engine.sleep(level)
        finally:
            self._falls_asleep = self.held = False
            if self._engine.sleep_level == 0:  # it could not
                self.let_on()
            self._changed()

    async def wake(self) -> int:
        """When its turn has come. Raises CannotSleep."""
        if self._engine.sleep_level == 0:
            return 0
        self._wished_at = self._wished_at or self._clock()
        self._changed()
        return await self._woken.next()

    async def load_adapter(self, name: str, folder: Path) -> AdapterFacts:
        """One that was never read has to be, first: an adapter is checked against its model. Raises AdapterError, CannotSleep."""
        if not (self._calls and self._calls.facts and self._calls.facts.load_s):
            await self.wake()
        return await self._engine.load_adapter(name, folder)

    async def unload_adapter(self, name: str) -> None:
        await self._engine.unload_adapter(name)

    # ---- for Residents

    @property
    def needs_bytes(self) -> int:
        """Awake; 0 until the engine has told."""
        facts = self._calls.facts if self._calls else None
        return facts.awake_bytes if facts else 0

    def view(self) -> ResidentView:
        assert self._calls is not None, "attached before anything is asked"
        self._waiting = [each for each in self._waiting if self._calls.is_open(each[0].request_id)]  # an engine that died ended all
        since = [at for _, at in self._waiting] + ([self._wished_at] if self._wished_at is not None else [])
        running = self._calls.open_calls - len(self._waiting)
        if running:
            self._used_at = self._clock()
        return ResidentView(
            name=self.name,
            needs_bytes=self.needs_bytes,
            awake=self.needs_bytes > 0 and self._engine.sleep_level == 0,
            running=running,
            waits_since_s=min(since, default=None),
            used_at_s=self._used_at,
            held=self.held,
        )

    async def make_room(self) -> None:
        assert self._calls is not None
        assert self._calls.facts is not None
        await self.sleep(ON_CPU if self._calls.facts.device == "cpu" else ON_DEVICE)

    async def take_room(self) -> None:
        """Awake when it returns, unless it cannot be, which its requests are told."""
        try:
            load_us = await self._engine.wake()
        except CannotSleep as error:
            self._woken.fail(error)
            for request, _ in self._waiting:
                self._refuse(request.request_id, WakeFailed, f"the model sleeps and cannot be woken: {error}")
            self._waiting.clear()
        else:
            self._woken.give(load_us)
            self.let_on()
        self._wished_at = None

    def let_on(self) -> None:
        self.held = False
        waiting, self._waiting = self._waiting, []
        for request, _ in waiting:
            self._engine.submit(request)

    def _refuse(self, request_id: str, error: type[RequestRefused], message: str) -> None:
        assert self._calls is not None
        self._calls.engine_rejected(Rejected(request_id, error.__name__, message, ""))


class Residents:
    """`run` until cancelled; raises ConfigError for a model that alone needs more than there is."""

    def __init__(self, budget_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._models: dict[str, Resident] = {}
        self._change = asyncio.Event()

    def join(self, name: str, engine: Engine) -> Resident:
        resident = self._models[name] = Resident(name, engine, self._change.set, self._clock)
        return resident

    async def run(self) -> None:
        while True:
            self._change.clear()
            views = [model.view() for model in self._models.values()]
            move = next_move(views, self._budget_bytes, self._clock())
            if move is not None:
                await self._make(move)
                continue
            self._check_sizes()
            waits = any(view.waits_since_s is not None for view in views)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._change.wait(), LOOK_AGAIN_S if waits else None)

    async def _make(self, move: Move) -> None:
        model = self._models[move.name]
        if isinstance(move, Hold):
            model.held = True
        elif isinstance(move, Release):
            model.let_on()
        elif isinstance(move, Sleep):
            log.info("model %s sleeps to make room", move.name)
            try:
                await model.make_room()
            except CannotSleep as error:
                log.warning("model %s does not sleep: %s", move.name, error)
                await asyncio.sleep(AFTER_FAILURE_S)
        elif isinstance(move, Wake):
            await model.take_room()

    def _check_sizes(self) -> None:
        for model in self._models.values():
            if model.needs_bytes > self._budget_bytes:
                raise ConfigError(
                    f"model {model.name} needs {gibibytes(model.needs_bytes)} awake and PAGODA_AWAKE_BYTES is "
                    f"{gibibytes(self._budget_bytes)}: raise it, or lower the model's maxModelLen or maxRunning",
                    reason="OutOfMemory",
                )
