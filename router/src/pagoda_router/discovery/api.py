"""The Kubernetes API as discovery needs it: list one kind of object, and watch it. Raw dicts; nothing is kept here.

The only module that imports the kubernetes package; `__main__` imports it only when discovery is Kubernetes.
"""

import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from pagoda_router.errors import ConfigError

CONNECT_S = 5.0
LIST_S = 15.0
WATCH_GRACE_S = 3.0
"""Given to the server to end a watch by itself before the connection counts as dead."""


class ApiFault(Exception):
    """One request did not give what was asked, in one sentence. Asking again later is always right."""


class KubernetesApi:
    def __init__(self, configuration: Configuration) -> None:
        self._client = ApiClient(configuration)

    @classmethod
    async def connect(cls, kubeconfig: str | None) -> Self:
        """Reads credentials, contacts nobody: `kubeconfig` if given, else the pod's service account. Raises ConfigError."""
        configuration = Configuration()
        try:
            if kubeconfig is not None:
                await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]
            else:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            where = f"KUBECONFIG={kubeconfig}" if kubeconfig is not None else "the pod's service account"
            raise ConfigError(f"PAGODA_DISCOVERY=kubernetes finds no way to the API server in {where}: {error}") from None
        try:
            return cls(configuration)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates for the API server cannot be used: {error}") from None

    async def close(self) -> None:
        """At once: TLS's goodbye would be waited for by a loop that may end with this call."""
        if (session := self._client.rest_client.pool_manager) is not None and isinstance(session.connector, aiohttp.TCPConnector):
            await session.connector.close(abort_ssl=True)
        await self._client.close()  # type: ignore[no-untyped-call]

    async def list(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """The whole list. Raises ApiFault."""
        async with self._get(path, query, LIST_S) as response:
            document = json.loads(await response.read())
        if not isinstance(document, dict):
            raise ApiFault(f"{path} answered {type(document).__name__}, not a list of objects")
        return document

    async def watch(self, path: str, query: Mapping[str, str], timeout_s: int) -> AsyncGenerator[dict[str, Any]]:
        """Events until the server ends the watch, after `timeout_s` at the latest. Raises ApiFault."""
        asked = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(timeout_s)}
        async with self._get(path, asked, timeout_s + WATCH_GRACE_S) as response:
            while line := await response.content.readline():
                event = json.loads(line)
                if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
                    raise ApiFault(f"the watch of {path} sent something that is no event")
                yield event

    @contextlib.asynccontextmanager
    async def _get(self, path: str, query: Mapping[str, str], timeout_s: float) -> AsyncIterator[aiohttp.ClientResponse]:
        response: aiohttp.ClientResponse | None = None
        try:
            method, url, headers, _, _ = await self._client.param_serialize(
                "GET",
                f"{path}?{urlencode(query)}",
                header_params={"Accept": "application/json", "User-Agent": "pagoda-router"},
                auth_settings=["BearerToken"],
            )
            timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
            response = (await self._client.call_api(method, url, headers, _request_timeout=timeout)).response
            assert response is not None
            if response.status != 200:
                raise ApiFault(_refusal(response.status, await response.read()))
            yield response
        except TimeoutError:
            raise ApiFault("the API server did not answer in time") from None
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise ApiFault(f"the API server cannot be reached: {error or type(error).__name__}") from error
        except ValueError as error:
            raise ApiFault(f"the API server's answer is broken: {error}") from error
        finally:
            if response is not None:
                response.close()


def _refusal(status: int, body: bytes) -> str:
    try:
        message = json.loads(body)["message"]
    except (ValueError, TypeError, KeyError):
        message = body[:200].decode(errors="replace")
    return f"the API server answered {status}: {message}"
