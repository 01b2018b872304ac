"""One run: meets the server, puts it under every load in turn, and gathers figures with the generator's own lateness beside them.

Called by command.py, quick.py and selfcheck.py; writing results is report.py's.
"""

import asyncio
import gc
import itertools
import random
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import uvloop

from pagoda_bench.errors import ServerUnusable
from pagoda_bench.load.arrivals import Arrival, poisson, read_trace
from pagoda_bench.load.client import Client, Target
from pagoda_bench.load.filler import Filler
from pagoda_bench.load.handshake import Model, agree, find_model
from pagoda_bench.load.lateness import P50_BOUND_S, P99_BOUND_S, Lateness, lateness_probe, summarise
from pagoda_bench.load.loops import LoopRun, Progress, Sender, closed_loop, open_loop
from pagoda_bench.load.measure import Figures, measure
from pagoda_bench.load.prompts import Dialect, Dialogue, Prompts
from pagoda_bench.load.scenarios import conversations, with_arrival
from pagoda_bench.load.settings import Level, RunSettings

Watch = Callable[[Level, int, Progress], None]
"""Told of every load level's start, with the round and a Progress that changes while it lasts."""


@dataclass(slots=True)
class LevelResult:
    level: Level
    case: str
    runs: list[LoopRun] = field(default_factory=list)
    late_s: list[Lateness] = field(default_factory=list)
    figures: Figures | None = None

    @property
    def lateness(self) -> Lateness:
        """Of the worst round."""
        return max(self.late_s, key=lambda late: late.p99_s)


@dataclass(slots=True)
class Measured:
    """Everything a report needs."""

    settings: RunSettings
    system: str
    model: str
    dialect: Dialect
    levels: list[LevelResult]
    notes: list[str]


def run(settings: RunSettings, watch: Watch = lambda level, number, progress: None) -> Measured:
    """Raises BenchError: SettingsError, or ServerUnusable when nothing at all could be measured."""
    _allow_many_connections()
    return uvloop.run(_run(settings, watch))


async def _run(settings: RunSettings, watch: Watch) -> Measured:
    filler = Filler(settings.tokenizer)
    trace = read_trace(settings.trace, max_requests=settings.max_requests) if settings.trace is not None else None
    client = Client(Target.parse(settings.url, settings.api_key), timeout_s=settings.timeout_s)
    try:
        model = await find_model(client, settings.model)
        agreement = await agree(client, model.name, settings.endpoint, filler, prompt_seed=settings.prompt_seed)
        prompts = Prompts(model.name, agreement.dialect, filler, prompt_seed=settings.prompt_seed)
        levels = [LevelResult(level, f"{settings.case_prefix} {level.label}") for level in settings.levels]
        for number in range(settings.rounds):
            for result in levels:
                progress = Progress(_expected(settings, result.level, trace))
                name = f"{settings.prompt_seed}-{result.level.label}-{number}"
                sender = Sender(client, prompts, progress, name=name, keep_text=filler.is_exact)
                watch(result.level, number, sender.progress)
                async with lateness_probe() as late_s, _without_garbage_collection():
                    result.runs.append(await _level(settings, result.level, number, sender, prompts, trace))
                result.late_s.append(summarise(late_s))
    finally:
        await client.aclose()
    for result in levels:
        result.figures = measure(result.runs, settings.slo)
    _check_something_worked(levels)
    notes = [*agreement.notes, *(note for result in levels for note in notes_on(result))]
    return Measured(settings, settings.system or _system(model), model.name, agreement.dialect, levels, notes)


async def _level(
    settings: RunSettings, level: Level, number: int, sender: Sender, prompts: Prompts, trace: Sequence[Arrival] | None
) -> LoopRun:
    seed = f"{settings.seed} {level.label} {number}"
    plans = conversations(settings.scenario, settings.lengths, settings.seed + number)
    names = (f"{level.label} {number} {i}" for i in itertools.count())
    if level.kind == "closed":
        users = int(level.amount)
        limit = None if settings.requests_per_user is None else users * (settings.requests_per_user + settings.warm_up)
        dialogues: Iterator[Dialogue] = (prompts.dialogue(plan, name) for plan, name in zip(plans, names, strict=False))
        return await closed_loop(
            sender,
            itertools.islice(dialogues, limit),
            concurrency=users,
            warm_up=settings.warm_up,
            ramp_s=settings.ramp_s,
            duration_s=settings.duration_s,
        )
    if level.kind == "trace":
        assert trace is not None
        arrivals = [Arrival(a.at_s / level.amount, a.prompt_tokens, a.output_tokens) for a in trace]
    else:
        arrivals = poisson(level.amount, settings.open_duration_s(), random.Random(seed))
    dialogues = (prompts.dialogue(with_arrival(plan, arrival), name) for arrival, plan, name in zip(arrivals, plans, names, strict=False))
    warm_up_s = min(10.0, arrivals[-1].at_s / 5) if settings.warm_up else 0.0
    return await open_loop(sender, [arrival.at_s for arrival in arrivals], dialogues, warm_up_s=warm_up_s)


def _expected(settings: RunSettings, level: Level, trace: Sequence[Arrival] | None) -> int | None:
    """Conversations in all, where that is known before."""
    if level.kind == "closed":
        return None if settings.requests_per_user is None else int(level.amount) * (settings.requests_per_user + settings.warm_up)
    return len(trace) if level.kind == "trace" and trace is not None else round(level.amount * settings.open_duration_s())


def notes_on(result: LevelResult) -> list[str]:
    """What a reader must know before trusting this level's figures."""
    figures, late = result.figures, result.lateness
    assert figures is not None
    notes: list[str] = []
    if not late.is_within_bounds:
        bounds = f"p50 {P50_BOUND_S * 1e3:g} ms, p99 {P99_BOUND_S * 1e3:g} ms"
        notes.append(f"the load generator was late ({late}; bounds: {bounds}): latencies include that, so measure on a quieter machine")
    if not figures.is_steady:
        notes.append("too short for a steady state: all requests after the warm-up count, ramps included; ask for more requests")
    if result.level.kind != "closed" and figures.is_falling_behind:
        notes.append("the server does not keep up: late requests took over twice as long as early ones")
    if result.level.kind != "closed" and _begins_before_first_end(result.runs):
        notes.append("the window begins before the first request ended: rates are too low; ask for a longer duration")
    if figures.errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(figures.errors.items()))
        notes.append(
            f"errors: {kinds} of {figures.counted} requests" + (f"; the first: {figures.first_error}" if figures.first_error else "")
        )
    counting = figures.counting
    for count, sentence in (
        (counting.without_usage, "answers without usage: their tokens are counted as chunks"),
        (counting.prompt_mismatches, "prompts have another number of tokens by the server's usage than asked"),
        (counting.output_mismatches, "answers have another number of tokens by the server's usage than asked"),
        (counting.more_chunks_than_tokens, "answers have fewer tokens by the server's usage than chunks with text"),
        (counting.client_differs or 0, "answers, encoded anew by the client's tokenizer, have another number of tokens than the usage"),
    ):
        if count:
            notes.append(f"{count} of {counting.requests} {sentence}")
    return [f"{result.case}: {note}" for note in notes]


def _begins_before_first_end(runs: Sequence[LoopRun]) -> bool:
    return any(run.records and run.window.start_s < min(record.ended_s for record in run.records) for run in runs)


def _check_something_worked(levels: Sequence[LevelResult]) -> None:
    figures = [result.figures for result in levels if result.figures is not None]
    if figures and all(figure.counting.requests == 0 for figure in figures):
        worst = figures[0]
        kinds = ", ".join(sorted(worst.errors)) or "none was sent in the window"
        raise ServerUnusable(f"no request succeeded ({kinds}{': ' + worst.first_error if worst.first_error else ''})")


def _system(model: Model) -> str:
    return model.owned_by or "server"


class _without_garbage_collection:  # reads as what it does
    """A collection over a hundred thousand live objects stops the loop for tens of milliseconds; a level creates few cycles."""

    async def __aenter__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    async def __aexit__(self, *_: object) -> None:
        gc.enable()
        gc.unfreeze()
        await asyncio.sleep(0)


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
