"""The front process as a whole: opens the ports, runs supervisor, sessions and probes in one event loop, drains on a stop.

Called by __main__; tests run it in their own loop.
"""

import asyncio
import contextlib
import logging
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from prometheus_client import CollectorRegistry

from pagoda_worker.errors import ConfigError, ModelError
from pagoda_worker.facts import ModelFacts
from pagoda_worker.front.artifacts import TextArtifacts, read_artifacts
from pagoda_worker.front.engine_link import ENGINE_COMMAND
from pagoda_worker.front.gpu import GpuMetrics, GpuReader
from pagoda_worker.front.metrics import WorkerMetrics
from pagoda_worker.front.probes import Probes
from pagoda_worker.front.residents import Residents
from pagoda_worker.front.service import WorkerService, new_server
from pagoda_worker.front.supervisor import EngineSupervisor
from pagoda_worker.front.switchboard import Switchboard
from pagoda_worker.readiness import Readiness
from pagoda_worker.settings.worker import WorkerSettings
from pagoda_worker.wire.worker_pb2_grpc import add_WorkerServicer_to_server

FLUSH_S = 8.0
"""For the last frames to reach the routers: up to 1024 for each, which a busy router reads in seconds. Less than the pod's grace
beyond drain_s."""

log = logging.getLogger(__name__)


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the front drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Front:
    """`start`, then `run` until `stop` has been called and the drain is over. A second `stop` cuts the drain short."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        engine_command: Sequence[str] = ENGINE_COMMAND,
        gpu_reader: GpuReader | None = None,
        residents: Residents | None = None,
    ) -> None:
        """`residents`: the models that share the device by turns, when this is one of several."""
        self._settings = settings
        registry = CollectorRegistry()
        self._metrics = WorkerMetrics(settings.model_name, registry)
        self._gpu_metrics = GpuMetrics(settings.model_name, registry, gpu_reader or GpuReader())
        self.supervisor = EngineSupervisor(settings.engine, stall_s=settings.stall_s, command=engine_command)
        worker_id = f"{settings.pod_name or settings.model_name}-{uuid.uuid4().hex[:8]}"
        resident = residents.join(settings.model_name, self.supervisor) if residents else None
        self._engine = resident or self.supervisor
        self.switchboard = Switchboard(settings.model_name, worker_id, self._engine, self._metrics)
        if resident:
            resident.attach(self.switchboard)
        self._stop_asked = asyncio.Event()
        self._stop_insisted = asyncio.Event()
        self.grpc_port = 0
        self.http_port = 0

    def stop(self) -> None:
        (self._stop_insisted if self._stop_asked.is_set() else self._stop_asked).set()

    async def run(self, *, started: Callable[[], None] = lambda: None) -> None:
        """Raises ConfigError when a port is taken or the model cannot be served."""
        settings = self._settings
        try:
            artifacts = await asyncio.to_thread(read_artifacts, settings.engine.model_dir)
        except ModelError as error:
            raise ConfigError(str(error), reason=error.reason) from error
        http_socket = _bind(settings.bind_host, settings.http_port, "PAGODA_HTTP_PORT")
        self.http_port = http_socket.getsockname()[1]
        probes = Probes(
            health=lambda: self.supervisor.trouble,
            ready=self.readiness,
            metrics=self._scrape,
            asleep=lambda: self.supervisor.sleep_level > 0,
        )
        http = QuietServer(uvicorn.Config(probes, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1))
        grpc_server = new_server()
        add_WorkerServicer_to_server(self._service(artifacts), grpc_server)
        try:
            self.grpc_port = grpc_server.add_insecure_port(_address(settings.bind_host, settings.grpc_port))
        except RuntimeError as error:
            http_socket.close()
            raise ConfigError(_port_is_taken(settings.bind_host, settings.grpc_port, "PAGODA_GRPC_PORT")) from error
        await grpc_server.start()
        supervisor = asyncio.create_task(self.supervisor.run(self.switchboard), name="engine-supervisor")
        serving = asyncio.create_task(http.serve(sockets=[http_socket]), name="probes")
        log.info("model %s: gRPC on port %d, probes on port %d", settings.model_name, self.grpc_port, self.http_port)
        started()
        try:
            await self._until_stopped(supervisor, serving)
        finally:
            await grpc_server.stop(grace=0.5)
            supervisor.cancel()
            http.should_exit = True
            await asyncio.gather(supervisor, serving, return_exceptions=True)

    def _service(self, artifacts: TextArtifacts) -> WorkerService:
        settings = self._settings
        self.switchboard.sources |= {each.name: each.source for each in settings.adapters}
        return WorkerService(self.switchboard, self._engine, artifacts, settings.session_token, model_cache=settings.model_cache)

    async def _until_stopped(self, supervisor: "asyncio.Task[None]", serving: "asyncio.Task[None]") -> None:
        """Raises what ends supervisor or probes; returns when a stop was asked and everything drained."""
        asked = asyncio.create_task(self._stop_asked.wait(), name="stop")
        done, _ = await asyncio.wait({asked, supervisor, serving}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {asked}:
            asked.cancel()
            task.result()
            raise RuntimeError(f"task {task.get_name()} ended unasked")
        await self._drain(supervisor)

    async def _drain(self, supervisor: "asyncio.Task[None]") -> None:
        log.info("draining, at most %.0f s", self._settings.drain_s)
        self.switchboard.drain("the worker is stopping", self._settings.drain_s)
        waits = [asyncio.create_task(event.wait()) for event in (self.switchboard.idle, self._stop_insisted)]
        await asyncio.wait({*waits, supervisor}, timeout=self._settings.drain_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self.switchboard.shut_down("the worker stopped before this was finished; ask again")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.switchboard.empty.wait(), FLUSH_S)
        log.info("drained")

    async def _scrape(self) -> bytes:
        facts = self.switchboard.facts
        await self._gpu_metrics.refresh(facts.gpu_uuids if facts is not None else [])
        return self._metrics.expose()

    def readiness(self) -> Readiness:
        if self._stop_asked.is_set():
            return Readiness(ready=False, reason="Draining", message=self._draining())
        waiting = self.supervisor.readiness
        if waiting is not None:
            return waiting
        facts = self.switchboard.facts
        assert facts is not None, "an engine that serves has said what it is"
        return Readiness(ready=True, capacity=capacity(facts), sleep_level=self.supervisor.sleep_level)

    def _draining(self) -> str:
        open_calls = self.switchboard.open_calls
        return f"the worker drains and takes no new requests; {open_calls} {'is' if open_calls == 1 else 'are'} still running"


def capacity(facts: ModelFacts) -> dict[str, float | int | str]:
    """Of /ready. Rates are of the self-test after loading; 0: it was off."""
    return {
        "kvTokens": facts.kv_capacity_tokens,
        "maxModelLen": facts.max_model_len,
        "maxModelLenFitting": facts.max_model_len_fitting,
        "prefillTokensPerS": round(facts.prefill_tokens_per_s, 1),
        "decodeTokensPerS": round(facts.decode_tokens_per_s, 1),
        "loadS": round(facts.load_s, 2),
        "warmS": round(facts.warm_s, 2),
        "device": facts.device,
    }


def _bind(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket; a taken port is one line, not uvicorn's exit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"{_port_is_taken(host, port, setting)} ({error.strerror})") from error
    return listener


def _port_is_taken(host: str, port: int, setting: str) -> str:
    return f"cannot listen on {_address(host, port)}: is the port taken? Set {setting} to another one"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
