"""The wire's Sleep and Wake, asked of one worker over a connection of their own: they may take longer than a session is silent.

Used by http/sleep.py.
"""

from dataclasses import dataclass
from typing import Any

import grpc.aio

from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.wire import worker_pb2 as wire
from pagoda_router.wire.worker_pb2_grpc import WorkerStub


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    worker: str
    freed_bytes: int | None = None
    load_ms: float | None = None
    error: str = ""
    """One sentence; empty when it did what was asked."""


class GrpcSleepCalls:
    """Implements sleep.SleepCalls."""

    def __init__(self, token: str) -> None:
        """`token`: that of sessions."""
        self._token = token

    async def sleep(self, endpoint: Endpoint, level: int, timeout_s: float) -> WorkerAnswer:
        answer = await self._call(endpoint, "Sleep", wire.SleepRequest(model=endpoint.model, level=level, token=self._token), timeout_s)
        return answer if isinstance(answer, WorkerAnswer) else WorkerAnswer(endpoint.name, freed_bytes=answer.freed_bytes)

    async def wake(self, endpoint: Endpoint, timeout_s: float) -> WorkerAnswer:
        answer = await self._call(endpoint, "Wake", wire.WakeRequest(model=endpoint.model, token=self._token), timeout_s)
        return answer if isinstance(answer, WorkerAnswer) else WorkerAnswer(endpoint.name, load_ms=round(answer.load_us / 1e3, 3))

    async def _call(self, endpoint: Endpoint, name: str, request: Any, timeout_s: float) -> Any:
        if endpoint.backend != OWN_BACKEND:
            return WorkerAnswer(endpoint.name, error=f"a {endpoint.backend} worker cannot sleep: scale the model to zero instead")
        async with grpc.aio.insecure_channel(endpoint.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                return await getattr(WorkerStub(channel), name)(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return WorkerAnswer(endpoint.name, error=f"requests still ran, or weights were still moved, after {timeout_s:g} s")
                return WorkerAnswer(endpoint.name, error=error.details() or error.code().name)
