"""The command `pagoda quantize`: options in, a bar while it works, what came of it. An entry point of `pagoda.commands`.

typer and rich come with that command; nothing that serves imports this module, and it imports torch only when there is something to do.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pagoda_worker.errors import ConfigError, WorkerError, gigabytes
from pagoda_worker.offline.logits_command import folder_of

if TYPE_CHECKING:
    from pagoda_worker.offline.quantize.run import Quantized


class To(StrEnum):
    int8 = "int8"
    int4 = "int4"
    fp8 = "fp8"


class How(StrEnum):
    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="builtin://NAME, a Hugging Face folder, or hf://ORG/NAME from the local cache.")
    ],
    to: Annotated[To, typer.Option(help="int8: W8A8. int4: W4A16 in groups. fp8: e4m3, W8A8.")],
    method: Annotated[
        How,
        typer.Option(
            help="rtn: round to nearest, in seconds. gptq: errors made good, the best int4. awq: scales by the activations' sizes."
        ),
    ] = How.rtn,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text like that to be served, plain or JSONL: gptq and awq learn from it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "--output", metavar="FOLDER", help="A new one. Default: MODEL-TO-METHOD here.")
    ] = None,
    group_size: Annotated[int, typer.Option(help="Inputs that share a scale, of int4; -1: all of an output.")] = 128,
    sym: Annotated[
        bool | None, typer.Option("--sym/--asym", help="Without or with zero points, of int4. Default: with for awq, else without.")
    ] = None,
    act_order: Annotated[bool, typer.Option("--act-order", help="GPTQ rounds the inputs that matter most first.")] = False,
    sparsity: Annotated[
        str | None, typer.Option(metavar="2:4", help="Two of each four inputs become zero. Costs quality; saves no time on CPUs.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Pieces of the calibration text.", min=1)] = 128,
    length: Annotated[int, typer.Option(help="Tokens of a piece.", min=32)] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Make a quantized checkpoint: compressed-tensors, for Pagoda, vLLM and transformers."""
    try:
        if sparsity not in (None, "2:4"):
            raise ConfigError(f"--sparsity is {sparsity}; only 2:4 is there")
        folder = folder_of(model)
        target = (out or Path(f"{folder.name}-{to}-{method}")).expanduser().absolute()
        from pagoda_worker.loading.loader import resolve_device  # here: torch takes seconds, and a wrong source needs none
        from pagoda_worker.offline.quantize.run import QuantizeSettings
        from pagoda_worker.offline.quantize.run import quantize as run

        settings = QuantizeSettings(
            to=to.value,
            method=method.value,
            calibration=None if calibration is None else calibration.expanduser(),
            group_size=group_size,
            symmetric=sym,
            act_order=act_order,
            sparse=sparsity is not None,
            samples=samples,
            length=length,
            device=resolve_device(device).type,
        )
        with _terminated_as_interrupted(), _progress() as news:
            made = run(folder, target, settings, news)
        _print(made, target)
    except KeyboardInterrupt:
        print(f"pagoda quantize: stopped; nothing was left at {target}", file=sys.stderr)
        raise typer.Exit(130) from None
    except WorkerError as error:
        sentence = str(error).replace("PAGODA_MODEL_SOURCE", "MODEL").replace("--model ", "MODEL ")
        print(f"pagoda quantize: {sentence}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """So that the unfinished folder goes away in both cases."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """What to tell of (linears done, linears in all, the last one): a bar in a terminal, else ten lines in a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _tenths(sys.stderr.write, time.monotonic)
        return
    columns = (BarColumn(), TextColumn("{task.completed}/{task.total} linears"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


def _tenths(write: Callable[[str], object], clock: Callable[[], float]) -> Callable[[int, int, str], None]:
    began, told = clock(), 0

    def tell(done: int, total: int, name: str) -> None:
        nonlocal told
        if 10 * done // total > told:
            told = 10 * done // total
            write(f"{done} of {total} linears after {clock() - began:.0f} s\n")

    return tell


def _print(made: "Quantized", folder: Path) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"written: {folder}")
    share = made.after_bytes / made.before_bytes
    console.print(f"tensors: {gigabytes(made.after_bytes)}, {share:.0%} of {gigabytes(made.before_bytes)}; {made.linears} linears")
    if made.errors:
        worst = max(made.errors, key=made.errors.__getitem__)
        mean = sum(made.errors.values()) / len(made.errors)
        console.print(f"error of their outputs: {100 * mean:.2g} % of the outputs' power; worst {100 * made.errors[worst]:.2g} %, {worst}")
        console.print(f"calibrated with: {made.calibration_tokens} tokens")
    console.print(f"time: {made.seconds:.0f} s")
