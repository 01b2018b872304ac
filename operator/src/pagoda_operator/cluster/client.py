"""The one way to the API server: raw JSON in and out, timeouts, retries with backoff, every call counted.

Owns the connection pool. Knows no kinds and makes no decision; used by informers, lease and writers. Configuration, TLS and token
refresh are those of `kubernetes.aio`; its model classes are not used: plain dicts cost a fifth of their memory.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from pagoda_operator.cluster.errors import Silence, Unavailable, api_error
from pagoda_operator.cluster.metrics import Metrics

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
JSON = "application/json"

REQUEST_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 5.0
ATTEMPTS = 5
BACKOFF_S = 0.2
PASSING = (401, 429)
"""Like 5xx, they pass: an account's token was just replaced, or the server asks for patience."""
LONGEST_PAUSE_S = 10.0
SILENCE_S = 90.0
"""A watch that says nothing for this long is opened anew: bookmarks come about every minute, but not of resources that rest."""

Json = dict[str, Any]


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """From the file that KUBECONFIG names, else from the service account of this pod."""
    configuration = Configuration()
    if kubeconfig:
        await load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]
    else:
        load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    # A proxy variable meant for downloads must not carry the API server's traffic away.
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


class Api:
    def __init__(
        self,
        configuration: Configuration,
        metrics: Metrics,
        *,
        user_agent: str = "pagoda-operator",
        before_write: Callable[[], None] = lambda: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`before_write` may raise: a replica that lost its Lease must not write."""
        self._client = ApiClient(configuration)
        self._client.user_agent = user_agent
        self._metrics = metrics
        self._pause = pause
        self.before_write = before_write
        self._writes = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    async def close(self) -> None:
        if (session := self._client.rest_client.pool_manager) is not None and isinstance(session.connector, aiohttp.TCPConnector):
            # nothing that we still have to say is worth waiting for the server's goodbye
            await session.connector.close(abort_ssl=True)
        await self._client.close()  # type: ignore[no-untyped-call]

    async def quiet(self, timeout_s: float) -> None:
        """Returns when no write is on its way any more; at the latest after the time given."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Json:
        return await self.call("GET", path, query=query)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> Json:
        """Raises ApiError for an answer that retrying does not change, Unavailable after the last attempt.

        Everything that we send may be sent twice: applies, deletes with a uid, creates that take "exists" for an answer.
        """
        told, pause = "", 0.0
        for attempt in range(attempts):
            if attempt:
                await self._pause(pause)
            if method != "GET":
                self.before_write()
            pause = min(LONGEST_PAUSE_S, BACKOFF_S * 2**attempt) * (0.5 + random.random() / 2)
            try:
                with self._counted(method):
                    code, answer, retry_after = await self._once(method, path, query, body, content_type, timeout_s)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                told = f"{type(error).__name__} {error}".strip()
                continue
            if code < 400:
                return answer
            if code not in PASSING and code < 500:
                raise api_error(code, answer)
            told = f"{code} {answer.get('message') or ''}".strip()
            pause = max(pause, min(LONGEST_PAUSE_S, retry_after))
        raise Unavailable(f"{method} {path}: {told}")

    async def watch(
        self, path: str, query: Mapping[str, str], *, opened: Callable[[], None] = lambda: None, silence_s: float = SILENCE_S
    ) -> AsyncIterator[Json]:
        """Events until the server ends the stream. `opened`: it answered. Raises ApiError (Gone above all), Silence and Unavailable."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s)
        try:
            response = await self._send("GET", path, query, None, JSON, timeout, verb="WATCH")
            async with _released(response):
                if response.status >= 400:
                    self._raise(response.status, await _decoded(response))
                opened()
                async for line in response.content:
                    if line.strip():
                        event: Json = json.loads(line)
                        if event["type"] == "ERROR":
                            status = event["object"]
                            self._raise(int(status.get("code") or 500), status)
                        yield event
        except aiohttp.SocketTimeoutError as error:
            raise Silence(f"WATCH {path}: nothing for {silence_s:g} s") from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError) as error:
            raise Unavailable(f"WATCH {path}: {type(error).__name__} {error}") from error

    def _raise(self, code: int, status: Json) -> None:
        if code in PASSING or code >= 500:
            raise Unavailable(f"{code} {status.get('message')}")
        raise api_error(code, status)

    async def _once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content_type: str, timeout_s: float
    ) -> tuple[int, Json, float]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        with self._timed(method):
            response = await self._send(method, path, query, body, content_type, timeout, verb=method)
            async with _released(response):
                answer = await _decoded(response)
        return response.status, answer, _seconds(response.headers.get("Retry-After"))

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
        *,
        verb: str,
    ) -> aiohttp.ClientResponse:
        url = f"{self._client.configuration.host}{path}{'?' + urlencode(query) if query else ''}"
        headers = {**self._client.default_headers, "Accept": JSON, "Content-Type": content_type}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        code = "none"
        try:
            rest = self._client.rest_client
            answer = await rest.request(method, url, headers=headers, body=body, _request_timeout=timeout)  # type: ignore[no-untyped-call]
            response: aiohttp.ClientResponse = answer.response
            code = str(response.status)
        finally:
            self._metrics.api_calls.labels(verb, _resource_in(path), code).inc()
        return response

    @contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        self._writes += method != "GET"
        self._quiet.clear() if self._writes else self._quiet.set()
        try:
            yield
        finally:
            self._writes -= method != "GET"
            self._quiet.clear() if self._writes else self._quiet.set()

    def _timed(self, verb: str) -> AbstractContextManager[Any]:
        return self._metrics.api_seconds.labels(verb).time()


class _released:
    """Gives the connection back, or closes it when the body was not read to its end."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aenter__(self) -> aiohttp.ClientResponse:
        return self._response

    async def __aexit__(self, *_: object) -> None:
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()


async def _decoded(response: aiohttp.ClientResponse) -> Json:
    text = await response.read()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"message": text[:200].decode(errors="replace")}


def _seconds(retry_after: str | None) -> float:
    try:
        return float(retry_after or 0)
    except ValueError:
        return 0.0


def _resource_in(path: str) -> str:
    """ "deployments" of /apis/apps/v1/namespaces/a/deployments/b; with its subresource, as roles write it: pods/status."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    if not parts:
        return "discovery"
    return f"{parts[0]}/{parts[2]}" if len(parts) > 2 else parts[0]
