"""A router's inside before other people's servers, with short times: links that relay, an app to call, and what it observed."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fleet_rig import Rig, model_object
from scripted import Caller

from pagoda_router.backends.base import LinkListener
from pagoda_router.backends.openai_http import HttpTiming, OpenAiLink
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import RequestOutcome, SilentObserver, SurfaceSettings
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer

QUICK = HttpTiming(look_every_s=0.05, look_when_away_s=0.02)


class Recorder(SilentObserver):
    def __init__(self) -> None:
        self.outcomes: list[RequestOutcome] = []

    def request_finished(self, outcome: RequestOutcome) -> None:
        self.outcomes.append(outcome)


class ForeignRig(Rig):
    http_timing = QUICK

    def _make_link(self, endpoint: Endpoint, *, listener: LinkListener, on_described: Callable[[Any], Awaitable[None]]) -> Any:
        if endpoint.relays:
            return OpenAiLink(endpoint, listener=listener, timing=self.http_timing)
        return super()._make_link(endpoint, listener=listener, on_described=on_described)

    def caller(self) -> Caller:
        self.recorder, self.ring = Recorder(), TraceRing(10)
        tracer = Tracer(self.ring, None, clock=time.monotonic, calendar=time.time)
        surface = SurfaceSettings(keep_alive_first_s=60)
        app = create_app(dispatcher=self.dispatcher, catalog=self.fleet, settings=surface, observer=self.recorder, tracer=tracer)
        return Caller(app)

    @property
    def link(self) -> OpenAiLink:
        (link,) = self.fleet.links(ModelName("chat"))
        assert isinstance(link, OpenAiLink)
        return link

    async def until_nothing_is_held(self) -> None:
        await self.until(lambda: self.link.in_flight == 0)
        assert self.link._outstanding_tokens == 0


def offered_by(*backends: str, **fields: Any) -> ModelObject:
    names = ("default",) if len(backends) == 1 else backends
    variants = tuple((name.replace("-", ""), 100) for name in names)
    return model_object("chat", backends=backends, variants=variants, **fields)


@asynccontextmanager
async def rig(cache_dir: Path, *servers: Any, models: tuple[ModelObject, ...] = (), **settings: Any) -> AsyncIterator[ForeignRig]:
    made = ForeignRig(cache_dir, **settings)
    try:
        made.know(*servers, models=models or (offered_by(servers[0].backend),))
        await made.until_routable(len(servers), model="chat")
        yield made
    finally:
        await made.fleet.close()
