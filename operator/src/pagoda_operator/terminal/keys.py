"""`pagoda keys create|list|limit|revoke` asks the router's /admin/v1/keys with an admin key, which checks and decides.

commands.py mounts it.
"""

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pagoda_operator.terminal.errors import CommandError
from pagoda_operator.terminal.router_admin import Router, ask_json

PATH = "/admin/v1/keys"
DAY_S = 86_400
ID = re.compile("key-[0-9a-f]+|bootstrap|anyone")
SECRET_START, PREFIX_CHARS = "pgd-", 12
"""Of the keys that a router makes, and how much of one it shows."""
OPTIONS = {"rpm": "requests_per_minute", "tpm": "tokens_per_minute", "monthly-tokens": "monthly_tokens", "monthly-usd": "monthly_usd"}
"""Of the limits, and the fields that they become."""
HEADINGS = ("ID", "PREFIX", "NAME", "TENANT", "CLASS", "MODELS", "LIMITS", "ADMIN", "STATE")

keys = typer.Typer(
    name="keys", help="API keys of the router: make, list, limit, revoke. PAGODA_API_KEY is the admin key.", no_args_is_help=True
)
Rpm = Annotated[int | None, typer.Option(min=1, help="Requests a minute.")]
Tpm = Annotated[int | None, typer.Option(min=1, help="Tokens a minute, prompt and output together.")]
MonthlyTokens = Annotated[int | None, typer.Option(min=1, help="Tokens a calendar month (UTC).")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="Or the prefix, both as `pagoda keys list` shows them.")]
MonthlyUsd = Annotated[float | None, typer.Option(min=0.000001, help="US dollars a calendar month (UTC), by the models' prices.")]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people, such as who or what uses it.")],
    tenant: Annotated[str, typer.Option(help="Whose work it is.")] = "default",
    request_class: Annotated[str, typer.Option("--class", help="latency, or throughput for batch work that waits behind.")] = "latency",
    model: Annotated[list[str] | None, typer.Option(help="A served name it may ask; may be repeated. All unless told.")] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    monthly_tokens: MonthlyTokens = None,
    monthly_usd: MonthlyUsd = None,
    admin: Annotated[bool, typer.Option("--admin", help="May make and revoke keys, and read metrics and usage.")] = False,
    days: Annotated[float | None, typer.Option(min=0.001, max=36_500, help="How long it works. For ever unless told.")] = None,
    router: Router = None,
) -> None:
    """Make a key. It goes to stdout, this once. What is not told is not limited."""
    wanted: dict[str, Any] = {"name": name, "tenant": tenant, "class": request_class, "admin": admin, "models": model or None}
    wanted |= _limits(rpm, tpm, monthly_tokens, monthly_usd)
    if days is not None:
        wanted["expires_at"] = int(time.time() + days * DAY_S)
    made = ask_json(router, "POST", PATH, wanted)
    for unknown in made.get("unknown_models", ()):  # an older router does not tell
        typer.echo(f"{unknown}: no model is served by this name now; the key reaches it once one is", err=True)
    typer.echo(f"{made['id']} made; nobody can show it again:", err=True)
    typer.echo(made["key"])


@keys.command("list")
def list_keys(router: Router = None) -> None:
    """All keys, the revoked and expired too; never the secrets."""
    rows = [HEADINGS, *(_row(key, time.time()) for key in ask_json(router, "GET", PATH)["data"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command()
def revoke(key: KeyId, router: Router = None) -> None:
    """Make a key useless, at once in the router that is asked."""
    typer.echo(f"{ask_json(router, 'DELETE', f'{PATH}/{key_id_of(key, router)}')['id']} is revoked")


@keys.command("limit")
def limit_key(
    key: KeyId,
    rpm: Rpm = None,
    tpm: Tpm = None,
    monthly_tokens: MonthlyTokens = None,
    monthly_usd: MonthlyUsd = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="rpm, tpm, monthly-tokens or monthly-usd: no limit any more. Repeatable.")
    ] = None,
    router: Router = None,
) -> None:
    """Give a key other limits or budgets; those that are not named stay."""
    wanted = {name: limit for name, limit in _limits(rpm, tpm, monthly_tokens, monthly_usd).items() if limit is not None}
    for option in remove or ():
        if option not in OPTIONS:
            raise CommandError(f"--remove {option}: write {', '.join(OPTIONS)}", status=2)
        wanted[OPTIONS[option]] = None
    if not wanted:
        raise CommandError("nothing to change: name a limit, or --remove one", status=2)
    changed = ask_json(router, "PATCH", f"{PATH}/{key_id_of(key, router)}", wanted)
    typer.echo(f"{changed['id']}: {_told(changed)}")


def key_id_of(given: str, router: str | None) -> str:
    """What a router calls the key whose ID or PREFIX was written. Raises CommandError, which never repeats what may be a secret."""
    if ID.fullmatch(given):
        return given
    prefix = given.removesuffix("…")
    if not prefix.startswith(SECRET_START) or len(prefix) < PREFIX_CHARS:
        raise CommandError("that is no key's id: write ID (key-…) or PREFIX (pgd-…) as `pagoda keys list` shows them", status=2)
    if len(prefix) > PREFIX_CHARS:
        raise CommandError(
            f"that is a key itself, which no command needs: write its prefix, {prefix[:PREFIX_CHARS]}, or its id of `pagoda keys list`",
            status=2,
        )
    found = [key["id"] for key in ask_json(router, "GET", PATH)["data"] if key["prefix"] == prefix]
    if len(found) != 1:
        several = f"{', '.join(found)} begin with {prefix}: write an id" if found else f"no key begins with {prefix}"
        raise CommandError(f"{several}: `pagoda keys list` shows all")
    return str(found[0])


def _limits(rpm: int | None, tpm: int | None, monthly_tokens: int | None, monthly_usd: float | None) -> dict[str, Any]:
    return dict(zip(OPTIONS.values(), (rpm, tpm, monthly_tokens, monthly_usd), strict=True))


def _told(key: dict[str, Any]) -> str:
    """Such as 60 requests/min, 5 USD/month."""
    units = ("requests/min", "tokens/min", "tokens/month", "USD/month")
    told = [
        f"{key[field]:g} {unit}" if unit == "USD/month" else f"{key[field]} {unit}"
        for field, unit in zip(OPTIONS.values(), units, strict=True)
        if key[field] is not None
    ]
    return ", ".join(told) or "none"


def _row(key: dict[str, Any], now_unix_s: float) -> tuple[str, ...]:
    models = "all" if key["models"] is None else ",".join(key["models"])
    return (
        key["id"],
        f"{key['prefix']}…",
        key["name"],
        key["tenant"],
        key["class"],
        models,
        _told(key),
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
