"""`pagoda keys create|list|revoke`: asks the router's /admin/v1/keys with an admin key. cli.py mounts it; the router checks and decides."""

import os
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pagoda_operator.local.errors import NotRunning
from pagoda_operator.local.home import home_from
from pagoda_operator.local.launch import running
from pagoda_operator.local.secret_files import read_api_key
from pagoda_operator.terminal.errors import CommandError

TIMEOUT_S = 15.0
DAY_S = 86_400
HEADINGS = ("ID", "PREFIX", "NAME", "TENANT", "CLASS", "MODELS", "ADMIN", "STATE")

keys = typer.Typer(name="keys", help="API keys of the router: make, list, revoke. PAGODA_API_KEY is the admin key.", no_args_is_help=True)
Router = Annotated[str | None, typer.Option(envvar="PAGODA_ROUTER", help="Its public URL; what `pagoda up` started here unless told.")]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people, such as who or what uses it.")],
    tenant: Annotated[str, typer.Option(help="Whose work it is.")] = "default",
    request_class: Annotated[str, typer.Option("--class", help="latency, or throughput for batch work that waits behind.")] = "latency",
    model: Annotated[list[str] | None, typer.Option(help="A served name it may ask; may be repeated. All unless told.")] = None,
    rpm: Annotated[int | None, typer.Option(min=1, help="Requests a minute to each router. No limit unless told.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May make and revoke keys and read metrics.")] = False,
    days: Annotated[float | None, typer.Option(min=0.001, max=36_500, help="How long it works. For ever unless told.")] = None,
    router: Router = None,
) -> None:
    """Make a key. It goes to stdout, this once."""
    wanted: dict[str, Any] = {"name": name, "tenant": tenant, "class": request_class, "admin": admin, "models": model or None}
    wanted["requests_per_minute"] = rpm
    if days is not None:
        wanted["expires_at"] = int(time.time() + days * DAY_S)
    made = _ask(router, "POST", "", wanted)
    typer.echo(f"{made['id']} made; nobody can show it again:", err=True)
    typer.echo(made["key"])


@keys.command("list")
def list_keys(router: Router = None) -> None:
    """All keys, the revoked and expired too; never the secrets."""
    rows = [HEADINGS, *(_row(key, time.time()) for key in _ask(router, "GET", "")["data"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `pagoda keys list` shows it.")], router: Router = None) -> None:
    """Make a key useless, at once in the router that is asked."""
    typer.echo(f"{_ask(router, 'DELETE', f'/{key_id}')['id']} is revoked")


def _row(key: dict[str, Any], now_unix_s: float) -> tuple[str, ...]:
    models = "all" if key["models"] is None else ",".join(key["models"])
    return (
        key["id"],
        f"{key['prefix']}…",
        key["name"],
        key["tenant"],
        key["class"],
        models,
        "yes" if key["admin"] else "no",
        _state(key, now_unix_s),
    )


def _state(key: dict[str, Any], now_unix_s: float) -> str:
    if key["revoked_at"] is not None:
        return f"revoked {_day(key['revoked_at'])}"
    if key["expires_at"] is None:
        return "valid"
    return f"{'expired' if now_unix_s >= key['expires_at'] else 'valid until'} {_day(key['expires_at'])}"


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%MZ")


def _ask(router: str | None, method: str, below: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    # imported here: an HTTP client is half of what starting this program would cost every other command
    import httpx

    url, key = _where(router)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.request(method, f"{url}/admin/v1/keys{below}", json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        answer: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise CommandError(f"the router at {url} did not answer: {error}") from error
    if not response.is_success:
        raise CommandError(str(answer.get("error", {}).get("message", f"the router answered {response.status_code}")))
    return answer


def _where(router: str | None) -> tuple[str, str | None]:
    """Base URL and admin key."""
    given = os.environ.get("PAGODA_API_KEY") or None
    if router is not None:
        return router.rstrip("/").removesuffix("/v1"), given
    home = home_from(os.environ)
    supervised = running(home)
    if supervised is None:
        raise NotRunning("nothing runs here: start with `pagoda up`, or name a router with --router URL")
    return supervised.choices.endpoint.removesuffix("/v1"), given or read_api_key(home.secrets)
