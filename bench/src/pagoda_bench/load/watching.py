"""A bar on the terminal while a run lasts; one line a level where there is no terminal. Reads Progress, changes nothing."""

import contextlib
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from pagoda_bench.load.loops import Progress
from pagoda_bench.load.run import Watch
from pagoda_bench.load.settings import Level

_EVERY_S = 0.5
"""Drawing takes a millisecond or two of the interpreter that also stamps chunks."""


@contextlib.contextmanager
def watching(console: Console) -> Iterator[Watch]:
    if not console.is_terminal:
        yield lambda level, number, progress: console.print(f"load {level.label}, round {number + 1}", markup=False, highlight=False)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Bar(*columns, console=console, auto_refresh=False, transient=True)
    current: list[tuple[TaskID, Progress, str]] = []
    ended = threading.Event()

    def start(level: Level, number: int, progress: Progress) -> None:
        name = f"{level.label} round {number + 1}"
        current.append((bar.add_task(name, total=progress.total), progress, name))

    def draw() -> None:
        while not ended.wait(_EVERY_S):
            if current:
                task, progress, name = current[-1]
                failed = f", {progress.failed} failed" if progress.failed else ""
                bar.update(task, completed=progress.ended, description=f"{name}: {progress.in_flight} in flight{failed}")
                bar.refresh()

    thread = threading.Thread(target=draw, daemon=True)
    with bar:
        thread.start()
        try:
            yield start
        finally:
            ended.set()
            thread.join()
