"""`pagoda adapters list|load|unload` asks the router's /admin/v1/adapters with an admin key, which asks the workers.

commands.py mounts it.
"""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from pagoda_operator.terminal.errors import CommandError
from pagoda_operator.terminal.router_admin import Router, ask_json

PATH = "/admin/v1/adapters"
LOAD_S = 300.0
HEADINGS = ("NAME", "MODEL", "RANK", "VERSION", "SOURCE", "FROM", "WORKERS")

adapters = typer.Typer(name="adapters", help="LoRA adapters of running models: list, load or replace, unload.", no_args_is_help=True)


@adapters.command("list")
def list_adapters(router: Router = None) -> None:
    """Every adapter, and how many workers have it; in brackets, in how many it lies in a slot of the device."""
    rows = [HEADINGS, *(_row(each) for each in ask_json(router, "GET", PATH)["data"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@adapters.command("load")
def load_adapter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What requests then call as their model.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A PEFT folder that the workers can see; file://FOLDER says the same.")],
    model: Annotated[str, typer.Option(help="A served name of the model that it adapts.")],
    router: Router = None,
) -> None:
    """Load an adapter on every worker of a model, or replace it: running requests keep what they began with."""
    asked = {"model": model, "name": name, "source": _absolute(source)}
    answer = ask_json(router, "POST", PATH, asked, timeout_s=LOAD_S)
    failed = [worker for worker in answer["workers"] if "error" in worker]
    for worker in answer["workers"]:
        told = worker.get("error") or f"rank {worker['rank']}, version {worker['version']}"
        typer.echo(f"{worker['worker']}: {told}", err="error" in worker)
    if failed:
        raise CommandError(f"{name} is not on {len(failed)} of {len(answer['workers'])} workers")


@adapters.command("unload")
def unload_adapter(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `pagoda adapters list` shows it.")], router: Router = None
) -> None:
    """Take an adapter away. Requests that run finish with it; new ones are refused."""
    answer = ask_json(router, "DELETE", f"{PATH}/{quote(name, safe='')}")
    failed = [f"{worker['worker']}: {worker['error']}" for worker in answer["workers"] if "error" in worker]
    if failed:
        raise CommandError(*failed)
    typer.echo(f"{name} is unloaded")


def _absolute(source: str) -> str:
    """A folder as it is written here is meant from here."""
    if "://" in source and not source.startswith("file://"):
        return source
    return f"file://{Path(source.removeprefix('file://')).expanduser().resolve()}"


def _row(adapter: dict[str, Any]) -> tuple[str, ...]:
    workers = adapter["workers"]
    resident = sum(worker["resident"] for worker in workers)
    return (
        adapter["name"],
        adapter["model"],
        "" if adapter["rank"] is None else str(adapter["rank"]),
        adapter["version"] or "",
        adapter["source"],
        "manifest" if adapter["declared"] else "loaded",
        f"{len(workers)} ({resident})",
    )
