"""The operator process: `python -m pagoda_operator`.

settings → logging → probes and metrics → Lease → kopf, informers, loop. Of several replicas one holds the Lease and works; the others wait.
SIGTERM gives the Lease back, so that the next one need not wait for its end. Losing it ends the process at once: two must never write.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException

from pagoda_operator.cluster.client import Api, load_configuration
from pagoda_operator.cluster.errors import LeaseLost
from pagoda_operator.cluster.feed import run_kopf
from pagoda_operator.cluster.health import Health, Servers
from pagoda_operator.cluster.lease import Lease
from pagoda_operator.cluster.metrics import Metrics
from pagoda_operator.cluster.operator import Operator, known_monitoring
from pagoda_operator.settings import OperatorSettings, SettingsError, parse_settings

log = logging.getLogger("pagoda_operator")

STOPPING_S = 3.0


def main() -> None:
    try:
        settings = parse_settings(os.environ)
    except SettingsError as error:
        sys.exit(f"pagoda-operator: {error}")
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "kopf"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    asyncio.run(run_and_exit(settings))


async def run_and_exit(settings: OperatorSettings) -> None:
    code = await run(settings)
    logging.shutdown()
    # at once: what still runs may write no more, and need not be asked to end
    os._exit(code)


async def run(settings: OperatorSettings) -> int:
    """Returns the exit code."""
    metrics, health = Metrics(), Health()
    servers = Servers(health, metrics)
    ports = await servers.start(health_port=settings.health_port, metrics_port=settings.metrics_port)
    log.info("version %s, /health on port %d, /metrics on port %d", settings.version, *ports)
    try:
        configuration = await load_configuration(os.environ.get("KUBECONFIG"))
    except ConfigException as error:
        log.error("no way to the API server: %s", error)
        return 1
    lease_api = Api(configuration, metrics)
    lease = Lease(
        lease_api,
        namespace=settings.pod_namespace,
        name=settings.lease_name,
        identity=settings.pod_name,
        duration_s=settings.lease_duration_s,
        renew_deadline_s=settings.renew_deadline_s,
        retry_s=settings.retry_s,
    )
    api = Api(configuration, metrics, before_write=lease.check)
    stopping = asyncio.Event()
    _on_signals(stopping.set)
    leading = asyncio.create_task(_lead(settings, lease, api, configuration, metrics, health, stopping.set))
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait([leading, asked], return_when=asyncio.FIRST_COMPLETED)
    if not leading.done():
        log.info("asked to stop")
        leading.cancel()
        if lease.resign():
            await api.quiet(STOPPING_S)
            await lease.release()
        return 0
    return _told_why(leading)


async def _lead(
    settings: OperatorSettings,
    lease: Lease,
    api: Api,
    configuration: Configuration,
    metrics: Metrics,
    health: Health,
    stop: Callable[[], None],
) -> None:
    """Waits for the Lease, then works. Ends only by an exception."""
    await lease.acquire()
    metrics.leader.set(1)
    namespaces = [*settings.namespaces]
    if namespaces and settings.canary and settings.canary[0] not in namespaces:
        namespaces.append(settings.canary[0])

    async def feed(hear: Callable[[str | None, Mapping[str, Any]], None]) -> None:
        await run_kopf(hear, configuration, namespaces, started=lambda: _on_signals(stop))
        # it ends by itself only on a signal that came before its handlers were replaced by ours
        stop()
        await asyncio.Event().wait()

    async def work() -> None:
        operator = Operator(api, settings, metrics, monitoring=await known_monitoring(api, settings.namespaces))
        operator.add_to(health)
        await operator.run(feed)

    async with asyncio.TaskGroup() as group:
        group.create_task(lease.keep(), name="lease")
        group.create_task(work(), name="operator")


def _on_signals(call: Callable[[], None]) -> None:
    """kopf puts up its own handlers when it starts; ours, which give back the Lease, are put up again then."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, call)


def _told_why(leading: asyncio.Task[None]) -> int:
    error = None if leading.cancelled() else leading.exception()
    lost = error.split(LeaseLost)[0] if isinstance(error, BaseExceptionGroup) else None
    if lost is not None:
        log.error("ending: %s", lost.exceptions[0])
    else:
        log.error("ending: a part of the operator stopped", exc_info=error)
    return 1


if __name__ == "__main__":
    main()
