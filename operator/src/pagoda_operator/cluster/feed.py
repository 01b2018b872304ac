"""kopf, used for one thing: its watch of InferenceModels tells us of each event. Nothing is stored, patched, posted or retried by it.

Called by __main__ once this replica leads.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from pagoda_operator.cluster.resources import MODELS

log = logging.getLogger(__name__)

PREFIX = "operator.pagoda.dev"
WHO: Any = "pagoda-operator"
"""Unused without peering; left out, kopf asks who the user is, and uid 10001 need not have a name."""

Hear = Callable[[str | None, Mapping[str, Any]], None]
"""Event type (None: from a list) and the object."""


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.posting.level = logging.WARNING
    settings.scanning.disabled = True  # neither CRDs nor namespaces are watched: no rights needed for it
    settings.peering.standalone = True
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 90
    settings.watching.chunk_size = 250
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.persistence.finalizer = f"{PREFIX}/unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=PREFIX)
    settings.process.ultimate_exiting_timeout = None
    return settings


def registry_for(hear: Hear, configuration: Configuration) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    group, version = MODELS.api_version.split("/")

    @kopf.on.event(group, version, MODELS.plural, registry=registry)
    async def on_event(event: Mapping[str, Any], **_: Any) -> None:
        hear(event["type"], event["object"])

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        """The same credentials as our own client's, read anew when they expire."""
        header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        scheme, _space, token = header.partition(" ") if header else ("", "", "")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            ca_data=configuration.ca_cert_data,
            insecure=not configuration.verify_ssl,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            scheme=scheme.capitalize() or None,
            token=token or None,
        )

    return registry


async def run_kopf(hear: Hear, configuration: Configuration, namespaces: Sequence[str], *, started: Callable[[], None]) -> None:
    """Until cancelled, or a signal comes before `started`, which is called when kopf has put up its own handlers of them."""
    ready = asyncio.Event()

    async def tell() -> None:
        await ready.wait()
        started()
        log.info("watching InferenceModels")

    teller = asyncio.create_task(tell())
    try:
        await kopf.operator(
            registry=registry_for(hear, configuration),
            settings=kopf_settings(),
            standalone=True,
            identity=WHO,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
            ready_flag=ready,
        )
    finally:
        teller.cancel()
