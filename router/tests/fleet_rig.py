"""A router's inside without HTTP, against scripted workers: fleet, dispatcher and real sessions, with short times."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from scripted_worker import ScriptedWorker

from pagoda_router.admission.lane import QueueLimits
from pagoda_router.backends.base import LinkListener, Settlement
from pagoda_router.backends.pagoda import PagodaLink
from pagoda_router.backends.session_life import LinkTiming
from pagoda_router.catalog import ServedName
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.discovery.snapshot import Endpoint, FleetSnapshot
from pagoda_router.dispatch.dispatcher import FleetDispatcher
from pagoda_router.fleet import Fleet
from pagoda_router.generation import Ended, Event, Generation, ModelName, Tokens
from pagoda_router.metrics.requests import RouterMetrics
from pagoda_router.text.artifacts import ArtifactCache

OF_THE_DISPATCHER = ("clock", "rng", "timeouts", "retries", "hedge_factor")
QUICK = LinkTiming(welcome_s=5, ping_every_s=5, first_backoff_s=0.02, last_backoff_s=0.05)


def model_object(name: str = "tiny", **fields: Any) -> ModelObject:
    fields = {"served_names": (ServedName(name),), "created": 1, "source": "builtin://tiny", **fields}
    return ModelObject(name=ModelName(name), **fields)


_BEGINNINGS = count(1)


def generation(prompt_tokens: int = 3, max_tokens: int = 16, *, first_id: int | None = None, **fields: Any) -> Generation:
    """Each begins otherwise than any other, unless `first_id` says how: prompts with one beginning share blocks, and pay for them once."""
    first = next(_BEGINNINGS) if first_id is None else first_id
    fields = {"request_id": "r", "model": ModelName("tiny"), "explicit_max_tokens": True, **fields}
    return Generation(prompt_ids=list(range(first, first + prompt_tokens)), max_tokens=max_tokens, **fields)


class Rig:
    def __init__(
        self, cache_dir: Path, *, timing: LinkTiming = QUICK, token: str = "", router_id: str = "test-router", **dispatcher: Any
    ) -> None:
        self.artifacts = ArtifactCache(cache_dir)
        self.registry = CollectorRegistry()
        bounds = {"max_queue_tokens": "max_tokens", "queue_timeout_s": "timeout_s"}
        given = {bounds.get(name, name): value for name, value in dispatcher.items() if name not in OF_THE_DISPATCHER}
        limits = QueueLimits(**{"max_tokens": 10_000, "timeout_s": 30.0, **given})
        settings = {name: value for name, value in dispatcher.items() if name in OF_THE_DISPATCHER}
        self.fleet = Fleet(self._make_link, self.artifacts)
        self.metrics = RouterMetrics(self.registry)
        self.dispatcher = FleetDispatcher(self.fleet, self.metrics, limits=limits, **settings)
        self.fleet.attach(self)
        self._timing = timing
        self._clock = settings.get("clock", time.monotonic)
        self._token = token
        self._router_id = router_id
        self._changed = asyncio.Event()

    def _make_link(self, endpoint: Endpoint, *, listener: LinkListener, on_described: Callable[[Any], Awaitable[None]]) -> PagodaLink:
        return PagodaLink(
            endpoint,
            router_id=self._router_id,
            token=self._token,
            artifacts=self.artifacts,
            listener=listener,
            on_described=on_described,
            timing=self._timing,
            clock=self._clock,
        )

    # LinkListener, passed on: the test can wait for what the dispatcher heard

    def capacity_changed(self, model: ModelName) -> None:
        self.dispatcher.capacity_changed(model)
        self._changed.set()

    def settled(self, settlement: Settlement) -> None:
        self.dispatcher.settled(settlement)
        self._changed.set()

    def session_ended(self, *facts: Any) -> None:
        self.dispatcher.session_ended(*facts)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Woken by every change that reaches the dispatcher."""
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def know(self, *workers: ScriptedWorker, models: Sequence[ModelObject] = (), terminating: Sequence[ScriptedWorker] = ()) -> None:
        """Discovery finds these."""
        endpoints = {worker.endpoint: worker not in terminating for worker in workers}
        names = {endpoint.model for endpoint, accepting in endpoints.items() if accepting}
        objects = tuple(models) or tuple(model_object(name) for name in sorted(names) or ["tiny"])
        self.fleet.apply(FleetSnapshot(models=objects, endpoints=endpoints, awaited=frozenset(names)))

    async def until_routable(self, count: int = 1, model: str = "tiny") -> None:
        await self.until(lambda: sum(link.view().routable for link in self.fleet.links(ModelName(model))) == count)

    @property
    def outstanding_tokens(self) -> int:
        """Capacity minus available, over all open sessions."""
        views = [link.view() for link in self.fleet.links(ModelName("tiny"))]
        return sum(view.capacity_tokens - view.available_tokens for view in views if view.routable)

    async def collect(self, wanted: Generation | None = None) -> list[Event]:
        async with self.dispatcher.generate(wanted or generation()) as stream:
            return [event for batch in [batch async for batch in stream] for event in batch]

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"pagoda_router_{name}", labels) or 0.0


@asynccontextmanager
async def rig(cache_dir: Path, *workers: ScriptedWorker, **settings: Any) -> AsyncIterator[Rig]:
    """With every worker connected and described."""
    made = Rig(cache_dir, **settings)
    try:
        if workers:
            made.know(*workers)
            await made.until_routable(len(workers))
        yield made
    finally:
        await made.fleet.close()


def tokens_of(events: Sequence[Event], sequence: int = 0) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) and event.sequence == sequence for token in event.token_ids]


def ends_of(events: Sequence[Event]) -> dict[int, str]:
    return {event.sequence: str(event.reason) for event in events if isinstance(event, Ended)}
