"""When a model cannot answer now, another one does: spec.routing.fallback, one step and never further. Stands before what answers.

A request falls back when it is refused (queue full, waited too long, no worker can come), or when no worker of its model has come for
spec.routing.fallbackAfter and the other one has one. Nothing has been written by then but signs of life, and nothing is billed twice. The
answer names the model that gave it, and a header says why. `X-Pagoda-Fallback: off` forbids it. app.py makes one.
"""

import asyncio
from dataclasses import replace
from typing import Protocol

import msgspec

from pagoda_router.catalog import Catalog, CatalogEntry
from pagoda_router.errors import BadRequest, Forbidden, ModelNotFound, NoWorker, Overloaded, RouterError
from pagoda_router.http.asgi import Exchange, Headers
from pagoda_router.openai.call import Call

HEADER = b"x-pagoda-fallback"
PARAM = "X-Pagoda-Fallback"
LOOK_S = 0.25
"""Between two looks at whether a worker has come."""


class Answering(Protocol):
    async def answer(self, call: Call, exchange: Exchange) -> None: ...


def takes_fallback(headers: Headers) -> bool:
    """Raises BadRequest."""
    given = [value.decode("latin-1").strip().lower() for name, value in headers if name == HEADER]
    for value in given:
        if value not in ("on", "off"):
            raise BadRequest(f"{PARAM}: {value[:40]!r} is neither on nor off", param=PARAM)
    return "off" not in given


class WithFallback:
    def __init__(self, inner: Answering, catalog: Catalog) -> None:
        self._inner = inner
        self._catalog = catalog

    async def answer(self, call: Call, exchange: Exchange) -> None:
        if not (self._catalog.falls_back and call.takes_fallback):
            await self._inner.answer(call, exchange)
            return
        try:
            async with asyncio.timeout(None) as patience:
                wait = _Wait(self, call, patience)
                try:
                    await self._inner.answer(call, exchange)
                finally:
                    wait.over()
        except TimeoutError:
            if not patience.expired():
                raise
            await self._fall_back(call, exchange, "cold_start", NoWorker("no worker came, and the model to fall back to is gone"))
        except (Overloaded, NoWorker) as refused:
            await self._fall_back(call, exchange, str(refused.code), refused)

    def other(self, call: Call) -> CatalogEntry | None:
        """Who answers in its place: something that can, that its key may ask for; None: nobody, or the answer has begun."""
        outcome = call.outcome
        wishes = call.wishes
        insists = not (wishes.variant is wishes.backend is wishes.quantization is None)
        if outcome.served_name is None or outcome.ttft_s is not None or insists:
            return None
        try:
            asked = self._catalog.get(outcome.served_name)
            if asked.fallback is None:
                return None
            call.key.require_model(asked.fallback)
            other = self._catalog.get(asked.fallback)
        except (ModelNotFound, Forbidden):
            return None
        return other if self._catalog.can_answer(other.model) else None

    def is_cold(self, call: Call) -> float | None:
        """How long its model lets it wait for a worker; None: it has one, or nobody would answer in its place."""
        served_name = call.outcome.served_name
        if served_name is None or self.other(call) is None:
            return None
        asked = self._catalog.get(served_name)
        return None if self._catalog.can_answer(asked.model) else asked.fallback_after_s

    async def _fall_back(self, call: Call, exchange: Exchange, why: str, refused: RouterError) -> None:
        """Raises `refused` when nobody else answers either: it says what the client's own model needs."""
        other, outcome = self.other(call), call.outcome
        if other is None:
            raise refused
        asked, asked_name = outcome.model, outcome.served_name
        call.account.release()
        body = _naming(call.body, other.served_name)
        outcome.fell_back_from, outcome.fell_back_why = asked, why
        try:
            await self._inner.answer(replace(call, body=body, fell_back=[(HEADER, why.encode())]), exchange)
        except RouterError as error:
            if outcome.ttft_s is not None:
                raise
            outcome.model, outcome.served_name, outcome.fell_back_from, outcome.fell_back_why = asked, asked_name, None, ""
            raise refused from error


class _Wait:
    """Looks, while an answer has not begun, whether its model has a worker; ends the patience when it has had none for too long."""

    def __init__(self, fallback: WithFallback, call: Call, patience: asyncio.Timeout) -> None:
        self._fallback = fallback
        self._call = call
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._cold_since_s = self._loop.time()
        self._timer: asyncio.TimerHandle = self._loop.call_later(LOOK_S, self._look)

    def over(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now_s = self._loop.time()
        after_s = self._fallback.is_cold(self._call)
        if after_s is None:
            self._cold_since_s = now_s
        elif now_s - self._cold_since_s >= after_s:
            self._patience.reschedule(now_s)
            return
        self._timer = self._loop.call_later(LOOK_S, self._look)


def _naming(body: bytes, served_name: str) -> bytes:
    """The request with another model in it, all else as it came."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "model": served_name})
