"""Asks a router's /admin/v1 with an admin key: which router, which key, and its answer or one line that says why there is none.

keys.py, usage.py and adapters.py call it; the router checks and decides.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pagoda_operator.local.errors import NotRunning
from pagoda_operator.local.home import home_from
from pagoda_operator.local.launch import running
from pagoda_operator.local.secret_files import read_api_key
from pagoda_operator.terminal.api_key import api_key_of
from pagoda_operator.terminal.errors import CommandError

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 15.0
Router = Annotated[str | None, typer.Option(envvar="PAGODA_ROUTER", help="Its public URL; what `pagoda up` started here unless told.")]


def ask_json(
    router: str | None,
    method: str,
    path: str,
    body: dict[str, Any] | None = None,
    query: Mapping[str, str] | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Any:
    """Raises CommandError, NotRunning."""
    response = _ask(router, method, path, body, query, timeout_s)
    return _json(response)


def ask_text(router: str | None, path: str, query: Mapping[str, str]) -> str:
    """Raises CommandError, NotRunning."""
    return _ask(router, "GET", path, None, query).text


def _ask(
    router: str | None,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    query: Mapping[str, str] | None,
    timeout_s: float = TIMEOUT_S,
) -> "httpx.Response":
    # imported here: an HTTP client is half of what starting this program would cost every other command
    import httpx

    url, key = _where(router)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.request(method, f"{url}{path}", json=body, params=query, headers=headers, timeout=timeout_s, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(f"the router at {url} did not answer: {error}") from error
    if not response.is_success:
        answer = _json(response)
        raise CommandError(str(answer.get("error", {}).get("message", f"the router answered {response.status_code}")))
    return response


def _json(response: "httpx.Response") -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise CommandError(f"the router at {response.url.host} did not answer: {error}") from error


def _where(router: str | None) -> tuple[str, str | None]:
    """Base URL and admin key."""
    given = api_key_of(os.environ)
    if router is not None:
        return router.rstrip("/").removesuffix("/v1"), given
    home = home_from(os.environ)
    supervised = running(home)
    if supervised is None:
        raise NotRunning("nothing runs here: start with `pagoda up`, or name a router with --router URL")
    return supervised.choices.endpoint.removesuffix("/v1"), given or read_api_key(home.secrets)
