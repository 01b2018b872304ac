"""What the subcommands of `pagoda bench` share: numbers, shares and load levels as they are typed, and errors in one line.

Imports what measures only inside each function, as command.py does. Called by command.py only.
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pagoda_bench.errors import BenchError, SettingsError

if TYPE_CHECKING:
    from pagoda_bench.load.settings import Level


def levels(concurrency: str | None, rate: str | None, trace: Path | None, trace_speed: str) -> tuple["Level", ...]:
    from pagoda_bench.load.settings import Level

    found = [Level("closed", int(amount)) for amount in numbers("--concurrency", concurrency, whole=True)]
    found += [Level("poisson", amount) for amount in numbers("--rate", rate)]
    found += [Level("trace", amount) for amount in numbers("--trace-speed", trace_speed if trace is not None else None)]
    if not found:
        raise SettingsError("say how to load it: --concurrency 1,8,32, --rate 2,4, or --trace FILE")
    return tuple(found)


def numbers(option: str, text: str | None, *, whole: bool = False) -> list[float]:
    try:
        found = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        found = [0.0]
    if any(number <= 0 or (whole and number != int(number)) for number in found):
        raise SettingsError(f"{option} {text}: write {'whole ' if whole else ''}numbers above 0 with commas, like 1,8,32")
    return found


def percent(option: str, text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not text.endswith("%") or not 0 <= share < 1:
        raise SettingsError(f"{option} {text}: write a share in percent, like 1% or 0.5%")
    return share


def typed() -> str:
    """The command as it was typed, without a key."""
    words = list(sys.argv[1:])
    for i, word in enumerate(words):
        if word == "--api-key" and i + 1 < len(words):
            words[i + 1] = "…"
        elif word.startswith("--api-key="):
            words[i] = "--api-key=…"
    return f"pagoda {shlex.join(words)}"


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    try:
        yield
    except BenchError as error:
        print(f"pagoda bench: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
