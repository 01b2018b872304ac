"""The wire's LoadAdapter and UnloadAdapter, asked of one worker over a connection of their own. Used by http/adapters.py."""

from dataclasses import dataclass
from typing import Any

import grpc.aio

from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.wire import worker_pb2 as wire
from pagoda_router.wire.worker_pb2_grpc import WorkerStub

LOAD_S, UNLOAD_S = 300.0, 10.0


@dataclass(frozen=True, slots=True)
class AdapterAnswer:
    worker: str
    rank: int | None = None
    version: str = ""
    error: str = ""
    """One sentence; empty when it did what was asked."""
    is_client_fault: bool = False
    """Of an error: the source or the adapter in it is wrong, on every worker alike."""


class GrpcAdapterCalls:
    """Implements http.adapters.AdapterCalls."""

    def __init__(self, token: str) -> None:
        """`token`: that of sessions."""
        self._token = token

    async def load(self, endpoint: Endpoint, name: str, source: str) -> AdapterAnswer:
        asked = wire.LoadAdapterRequest(model=endpoint.model, adapter=name, source=source, token=self._token)
        answer = await self._call(endpoint, "LoadAdapter", asked, LOAD_S)
        return answer if isinstance(answer, AdapterAnswer) else AdapterAnswer(endpoint.name, answer.rank, answer.version)

    async def unload(self, endpoint: Endpoint, name: str) -> AdapterAnswer:
        asked = wire.UnloadAdapterRequest(model=endpoint.model, adapter=name, token=self._token)
        answer = await self._call(endpoint, "UnloadAdapter", asked, UNLOAD_S)
        return answer if isinstance(answer, AdapterAnswer) else AdapterAnswer(endpoint.name)

    async def _call(self, endpoint: Endpoint, name: str, request: Any, timeout_s: float) -> Any:
        if endpoint.backend != OWN_BACKEND:
            sentence = f"a {endpoint.backend} worker takes no adapters from here: give them in its spec.engine.args"
            return AdapterAnswer(endpoint.name, error=sentence, is_client_fault=True)
        async with grpc.aio.insecure_channel(endpoint.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                return await getattr(WorkerStub(channel), name)(request, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                is_client_fault = error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
                return AdapterAnswer(endpoint.name, error=error.details() or error.code().name, is_client_fault=is_client_fault)
