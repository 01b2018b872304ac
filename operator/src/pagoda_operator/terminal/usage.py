"""`pagoda usage`: asks the router's /admin/v1/usage with an admin key and shows a table, or CSV. commands.py mounts it."""

from typing import Annotated, Any

import typer

from pagoda_operator.terminal.errors import CommandError
from pagoda_operator.terminal.keys import key_id_of
from pagoda_operator.terminal.router_admin import Router, ask_json, ask_text

PATH = "/admin/v1/usage"
HEADINGS = ("START", "KEY", "NAME", "MODEL", "REQUESTS", "PROMPT", "CACHED", "OUTPUT", "USD")
NUMBERS = 5
"""Of the columns, the last ones."""


def usage(
    key: Annotated[str | None, typer.Option(help="Of one key: its ID or prefix, as `pagoda keys list` shows it.")] = None,
    model: Annotated[str | None, typer.Option(help="Of one InferenceModel.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="A date or time (UTC), such as 2026-11-26. This month's first unless told.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same; now unless told.")] = None,
    by: Annotated[str, typer.Option(help="hour, day or total.")] = "day",
    as_csv: Annotated[bool, typer.Option("--csv", help="For a spreadsheet.")] = False,
    router: Router = None,
) -> None:
    """Who used what: tokens and cost by key, model and time."""
    if by not in ("hour", "day", "total"):
        raise CommandError(f"--by {by}: write hour, day or total", status=2)
    key_id = key_id_of(key, router) if key else None
    asked = {"key": key_id, "model": model, "from": since, "until": until, "by": by, "format": "csv" if as_csv else "json"}
    query = {name: value for name, value in asked.items() if value is not None}
    if as_csv:
        typer.echo(ask_text(router, PATH, query), nl=False)
        return
    answer = ask_json(router, "GET", PATH, query=query)
    total = answer["total"] | {"start": "total", "key": "", "name": "", "model": ""}
    rows = [HEADINGS, *(_row(row) for row in (*answer["data"], total))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        cells = [
            cell.rjust(width) if column >= len(HEADINGS) - NUMBERS else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    start = row["start"].replace("T", " ").replace(":00Z", "Z")
    numbers = (row[name] for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens"))
    return (start, row["key"], row["name"], row["model"], *map(str, numbers), f"{row['cost_usd']:.6f}")
