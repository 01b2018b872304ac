"""Subcommands that other distributions bring: entry points of the group `pagoda.commands`, loaded only when they are called.

An entry point names a typer.Typer or a function. Called by commands.py.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from pagoda_operator.terminal.errors import CommandError

GROUP = "pagoda.commands"
ELSEWHERE = {"bench": "pagoda-bench", "quantize": "pagoda-worker", "logits": "pagoda-worker"}
"""Commands that are known to exist, and the distribution each comes with."""
SUMMARIES = {
    "bench": "Load a server, compare models' quality, measure what parts of Pagoda cost or win.",
    "quantize": "Make a checkpoint in int8, int4 or fp8 of a plain one.",
    "logits": "Show a prompt's tokens and the most likely next ones.",
}
"""Of the same, for the list of commands."""


def add_extensions(app: typer.Typer, arguments: Sequence[str]) -> None:
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, entry in sorted(found.items()):
        if name == called:
            _add(app, name, _load(entry))
        else:
            # its own help is not read: importing a worker's command would import torch for every `pagoda get`
            source = f"From {entry.dist.name if entry.dist else entry.value}."
            app.command(name, help=SUMMARIES.get(name, source))(_nothing)
    for name in sorted(set(ELSEWHERE) - set(found)):
        _add_stub(app, name, ELSEWHERE[name])


def _add(app: typer.Typer, name: str, command: Any) -> None:
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except ImportError as error:
        raise CommandError(f"the command {entry.name} cannot be loaded: {error}") from error


def _add_stub(app: typer.Typer, name: str, distribution: str) -> None:
    @app.command(name, hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def missing() -> None:
        raise CommandError(
            f"`pagoda {name}` comes with {distribution}, which has no such command here: {sys.executable} -m pip install {distribution}"
        )


def _nothing() -> None:
    """Stands in the list of commands; never called."""
