"""Starts one router process: settings → fleet, dispatcher, surface → two listeners; SIGTERM drains. Owns the process, decides nothing."""

import asyncio
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvloop
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, disable_created_metrics

from pagoda_router.admission.lane import QueueLimits
from pagoda_router.backends.adapters import GrpcAdapterCalls
from pagoda_router.backends.base import LinkListener, WorkerLink
from pagoda_router.backends.openai_http import OpenAiLink
from pagoda_router.backends.pagoda import PagodaLink
from pagoda_router.backends.sleep import GrpcSleepCalls
from pagoda_router.database.base import Database
from pagoda_router.database.opened import opened
from pagoda_router.discovery.file import FileDiscovery
from pagoda_router.discovery.snapshot import Endpoint, FleetSnapshot
from pagoda_router.dispatch.dispatcher import FleetDispatcher
from pagoda_router.dispatch.second_tries import RetryShares
from pagoda_router.dispatch.stalls import StageTimeouts
from pagoda_router.errors import ConfigError
from pagoda_router.fleet import Fleet
from pagoda_router.generation import ModelName
from pagoda_router.heap import keep_freed_memory
from pagoda_router.http.adapters import AdapterAdmin
from pagoda_router.http.admin import admin_routes
from pagoda_router.http.app import create_app
from pagoda_router.http.internal import Probes, first_of, fleet_report, internal_app, routes
from pagoda_router.http.listeners import Listeners, address, bind, closing_when
from pagoda_router.http.placement import PlacementAdmin
from pagoda_router.http.sleep import TAKES, SleepAdmin
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.http.traces import TraceAdmin
from pagoda_router.keys.keyring import Keyring
from pagoda_router.keys.store import KeyStore
from pagoda_router.logs import log_to_stderr
from pagoda_router.metrics.fleet import FleetCollector, PlacementCollector
from pagoda_router.metrics.requests import RouterMetrics
from pagoda_router.objectives import Slo
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.settings import RouterSettings, parse_settings
from pagoda_router.text.artifacts import ArtifactCache
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer
from pagoda_router.usage.amounts import TokenPrices
from pagoda_router.usage.opened import opened_ledger

if TYPE_CHECKING:
    from pagoda_router.tracing.export import OtlpExporter

log = logging.getLogger("pagoda_router")

YOUNG_OBJECTS = 20_000
"""Between two looks for cycles; Python's 700 are a few tokens here, and what a request leaves behind has few cycles."""


def main() -> int:
    try:
        settings = parse_settings(os.environ)
        public = bind(settings.bind_host, settings.http_port, "PAGODA_HTTP_PORT", reuse_port=settings.reuse_port)
        internal = bind(settings.bind_host, settings.internal_port, "PAGODA_INTERNAL_PORT")
        artifacts = _open_cache(settings)
        database = None if settings.key_database is None else opened(settings.key_database)
    except ConfigError as error:
        sys.stderr.write(f"pagoda-router: {error}\n")
        return 2
    log_to_stderr(settings.log_level)
    keep_freed_memory()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which no dashboard reads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a short text handed to a pool of threads takes twice as long
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # a router has one core; its threads would spin on others'
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read at the first channel; its notes of every lost connection are not our log's form
    try:
        uvloop.run(serve(settings, artifacts, database, public, internal))
    except ConfigError as error:
        sys.stderr.write(f"pagoda-router: {error}\n")
        return 2
    return 0


async def serve(
    settings: RouterSettings, artifacts: ArtifactCache, database: Database | None, public: socket.socket, internal: socket.socket
) -> None:
    """Until a signal, then until drained."""
    router_id = settings.pod_name or f"router-{secrets.token_hex(6)}"
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    fleet = Fleet(_link_factory(settings, artifacts, router_id), artifacts)
    metrics = RouterMetrics(registry, _slos_of(fleet))
    registry.register(FleetCollector(fleet))
    dispatcher = FleetDispatcher(
        fleet,
        metrics,
        limits=_limits_of(settings),
        decision_ring=settings.decision_ring,
        timeouts=StageTimeouts(settings.first_token_timeout_s, settings.next_token_timeout_s),
        retries=RetryShares(settings.retry_share, settings.replay_share),
        hedge_factor=settings.hedge_factor,
    )
    registry.register(PlacementCollector(fleet, dispatcher.chooser))
    fleet.attach(dispatcher)
    exporter = _start_exporter(settings, router_id, registry)
    ring = TraceRing(settings.trace_ring)
    keyring = Keyring(settings.api_key, None if database is None else KeyStore(database), calendar=time.time)
    ledger = await opened_ledger(database, settings.redis, router_id, _token_prices_of(fleet))
    discovery = await _discover(settings, fleet.apply)
    probes = Probes(fleet, lambda: fleet.is_loaded)
    probe_routes = routes(probes, registry)
    adapters = AdapterAdmin(fleet, GrpcAdapterCalls(settings.session_token))
    app = create_app(
        adapters=adapters,
        dispatcher=dispatcher,
        catalog=fleet,
        settings=SurfaceSettings(max_body_bytes=settings.max_body_bytes, cors_origins=settings.cors_origins),
        keyring=keyring,
        ledger=ledger,
        observer=metrics,
        tracer=Tracer(ring, exporter, clock=time.monotonic, calendar=time.time),
        open_routes={path: probe_routes[path] for path in ("/health", "/ready")},
        guarded_routes={"/metrics": probe_routes["/metrics"], **admin_routes(fleet, dispatcher, ring, time.monotonic)},
    )
    inner = internal_app(
        probe_routes,
        lambda: fleet_report(fleet, dispatcher),
        settings.internal_token,
        is_loopback=settings.is_loopback,
        admin=first_of(TraceAdmin(ring, time.monotonic), PlacementAdmin(fleet, dispatcher.chooser, dispatcher.decisions, time.monotonic)),
        action=SleepAdmin(fleet, GrpcSleepCalls(settings.session_token)),
        actions=TAKES,
    )
    outer = closing_when(lambda: probes.draining, app)
    listeners = Listeners((public, outer), (internal, inner), drain_s=settings.drain_s, linger_s=settings.linger_s)
    stopping = _on_signals(listeners)
    watching = asyncio.create_task(discovery.run, name="discovery")
    refreshing = [asyncio.create_task(keyring.run(), name="keys"), asyncio.create_task(ledger.run(), name="usage")]
    refreshing.append(asyncio.create_task(adapters.run(), name="adapters"))
    listeners.start()
    log.info("listening http=%s internal=%s fleet=%s", address(public), address(internal), discovery.where)
    if keyring.is_open:
        log.info("no API key is needed: only this machine reaches the router; set PAGODA_API_KEY to need one")
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    await asyncio.wait(
        [asyncio.create_task(stopping.wait()), asyncio.create_task(listeners.stopped())], return_when=asyncio.FIRST_COMPLETED
    )
    log.info("not ready any more; taking requests for another %g s, then draining for up to %g s", settings.linger_s, settings.drain_s)
    probes.draining = True
    await listeners.drain(lambda: dispatcher.shut_down("the router is shutting down: send the request again"))
    for task in (watching, *refreshing):
        task.cancel()
    await fleet.close()
    await asyncio.gather(watching, *refreshing, return_exceptions=True)
    await ledger.close()
    if database is not None:
        await asyncio.to_thread(database.close)
    await discovery.close()
    if exporter is not None:
        await asyncio.to_thread(exporter.stop)
    log.info("stopped")


def _limits_of(settings: RouterSettings) -> QueueLimits:
    return QueueLimits(
        max_tokens=settings.max_queue_tokens,
        max_requests=settings.max_queue_requests,
        timeout_s=settings.queue_timeout_s,
        throughput_timeout_s=settings.throughput_queue_timeout_s,
        promote_after_s=settings.promote_after_s,
        waves=settings.waves,
    )


def _slos_of(fleet: Fleet) -> Callable[[ModelName], Slo | None]:
    def slo_of(name: ModelName) -> Slo | None:
        model = fleet.find(name)
        return None if model is None else model.slo

    return slo_of


def _token_prices_of(fleet: Fleet) -> Callable[[str], TokenPrices | None]:
    def prices_of(name: str) -> TokenPrices | None:
        model = fleet.find(ModelName(name))
        return None if model is None else model.token_prices

    return prices_of


def _start_exporter(settings: RouterSettings, router_id: str, registry: CollectorRegistry) -> "OtlpExporter | None":
    if settings.otlp_endpoint is None:
        return None
    # Imported here: a router that exports nothing need not pay for it.
    from pagoda_router.tracing.export import OtlpExporter

    exporter = OtlpExporter(settings.otlp_endpoint, router_id, registry, headers=dict(settings.otlp_headers))
    exporter.start()
    return exporter


@dataclass(frozen=True, slots=True)
class Discovery:
    run: Coroutine[Any, Any, None]
    close: Callable[[], Awaitable[None]]
    where: str


async def _discover(settings: RouterSettings, on_snapshot: Callable[[FleetSnapshot], None]) -> Discovery:
    """Raises ConfigError."""
    if settings.fleet_file is not None:
        found = FileDiscovery(settings.fleet_file, on_snapshot)
        found.poll()  # what is there is known before the first request
        return Discovery(found.run(), _nothing, str(settings.fleet_file))
    # Imported here: its client costs a second and 40 MB, which a router that reads a file need not pay.
    from pagoda_router.discovery.api import KubernetesApi
    from pagoda_router.discovery.kubernetes import KubernetesDiscovery

    api = await KubernetesApi.connect(os.environ.get("KUBECONFIG"))
    return Discovery(KubernetesDiscovery(api, settings.namespace, on_snapshot).run(), api.close, f"namespace {settings.namespace}")


async def _nothing() -> None:
    pass


def _open_cache(settings: RouterSettings) -> ArtifactCache:
    try:
        return ArtifactCache(settings.cache_dir)
    except OSError as error:
        raise ConfigError(f"PAGODA_CACHE_DIR={settings.cache_dir} is not a writable folder: {error.strerror}") from None


def _link_factory(settings: RouterSettings, artifacts: ArtifactCache, router_id: str) -> Callable[..., WorkerLink]:
    def make_link(endpoint: Endpoint, *, listener: LinkListener, on_described: Callable[[Any], Awaitable[None]]) -> WorkerLink:
        if endpoint.backend != OWN_BACKEND:
            return OpenAiLink(endpoint, listener=listener, zone=settings.zone)
        return PagodaLink(
            endpoint,
            router_id=router_id,
            token=settings.session_token,
            artifacts=artifacts,
            listener=listener,
            on_described=on_described,
            zone=settings.zone,
        )

    return make_link


def _on_signals(listeners: Listeners) -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends what still runs."""
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            listeners.end_at_once()
        stopping.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, on_signal)
    return stopping


if __name__ == "__main__":
    sys.exit(main())
