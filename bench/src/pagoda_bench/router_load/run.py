"""`make bench-router`: the mocks and every router start, each scenario goes round all of them, and the figures become one result file.

Called by `pagoda bench router`. Owns the processes while it runs; decides nothing about what figures mean.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from pagoda_bench.errors import SettingsError
from pagoda_bench.local_stack import free_port
from pagoda_bench.peers.baseline import commit_of, files_of
from pagoda_bench.peers.system import PeerUnavailable
from pagoda_bench.results import result_here, write
from pagoda_bench.router_load.interpreter import described
from pagoda_bench.router_load.measure import LoadFailed, Measured, Rig
from pagoda_bench.router_load.pinned import Pinned, two_cores
from pagoda_bench.router_load.program import build
from pagoda_bench.router_load.report import cautions, markdown, rows, scaling_rows
from pagoda_bench.router_load.scenarios import DIRECT, OURS, SCALING, SCENARIOS, SOAK, WORDS, Scenario
from pagoda_bench.router_load.systems import MODELS, STARTERS, RouterSystem, Site, counted_usage, pagoda
from pagoda_bench.router_load.vocabulary import trained

PACKAGES = ("pagoda-router", "uvicorn", "uvloop", "httptools", "grpcio", "protobuf", "tokenizers", "fastokens")
READY_TIMEOUT_S = 20.0
HOPELESS_SHARE = 0.1
"""A system that answers less of what it is asked is not asked this case again."""
WARM_UP_S = 2.0
IDLE_SHARE = 0.1
"""Of a core: below it nothing is left of what a system was asked."""
LONGEST_SETTLING_S = 60.0
COPIES = 2
"""Backends, and workers of each model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    systems: Sequence[str] = tuple(STARTERS)
    cases: Sequence[str] = ()
    """Parts of names; empty: all."""
    rounds: int = 3
    window_s: float = 3.0
    soak_s: float = 60.0
    before: str | None = None
    """Another commit of this repository, whose router is measured too, as `pagoda-before`."""
    interpreter: Path | None = None
    """That our routers run on. None: the one that runs this."""
    output: Path
    """Path without suffix."""


def run(options: Options, *, command: str) -> None:
    """Raises BenchError."""
    if unknown := [name for name in options.systems if name not in STARTERS]:
        raise SettingsError(f"no router {', '.join(unknown)}: one of {', '.join(STARTERS)}")
    scenarios = [one for one in (*SCENARIOS, SOAK) if not options.cases or any(part in one.case for part in options.cases)]
    commit = None if options.before is None else commit_of(options.before, "--before")
    runs_on = described(options.interpreter or Path(sys.executable))
    program, load_before = build(), os.getloadavg()[0]
    router_core, rig_core = two_cores()
    unavailable: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pagoda-router-load-") as folder, ExitStack() as closing:
        rig, site = start_mocks(program, Path(folder), [router_core], [rig_core], closing)
        site = replace(site, interpreter=options.interpreter)
        systems = _start(options.systems, site, closing, unavailable)
        if commit is not None:
            checkout = closing.enter_context(files_of(commit, Path(folder) / "checkout"))
            earlier = pagoda(replace(site, scratch=Path(folder) / "before", source=checkout / "router" / "src"))
            closing.callback(earlier.stop)
            systems.append(replace(earlier, name=f"{OURS}-before", setting=f"ours as of {commit[:9]}, with the libraries of now"))
        taken = {scenario.case: _rounds(scenario, systems, rig, options) for scenario in scenarios}
        settings = [f"{system.name}: {system.setting}" for system in systems]
        settings.append(f"{OURS} runs on {runs_on}")
        settings += [_usage_of(system) for system in systems if system.name == OURS]
        if OURS in options.systems:
            scaling = [one for one in SCALING if not options.cases or any(part in one.case for part in options.cases)]
            taken |= _scaling(program, Path(folder) / "scaling", scaling, options)
            scenarios += scaling
    rounds = {(case, system): measured for case, by_system in taken.items() for system, measured in by_system.items()}
    found = [*rows(scenarios, rounds), *scaling_rows(SCALING, rounds)]
    turns = "the systems take turns; all are up, and stopped (SIGSTOP) while another one is measured"
    notes = [
        f"router on core {router_core}, load and mocks on core {rig_core}; {options.rounds} rounds of {options.window_s:g} s, {turns}",
        "medians, low and high are of the rounds; added: the same percentile of the same round without a router taken off",
        "CPU: of the router's whole process tree; the rig's ceiling: what it counted by the CPU seconds of load generator and mock",
        f"load average of the machine before: {load_before:.1f}",
        *settings,
        *cautions(scenarios, found),
    ]
    result = result_here("router", found, command=command, packages=PACKAGES, notes=notes)
    write(result, options.output.with_suffix(".json"))
    text = markdown(result, unavailable)
    options.output.with_suffix(".md").write_text(text)
    _say(f"\n{text}\nwrote {options.output}.json and .md")


def start_mocks(program: Path, folder: Path, router_cores: Sequence[int], rig_cores: Sequence[int], closing: ExitStack) -> tuple[Rig, Site]:
    """The mocks listen; `closing` ends them."""
    backends = [free_port() for _ in range(COPIES)]
    workers = {model: [free_port() for _ in range(COPIES)] for model in MODELS}
    tokenizer, template = _text_rules(folder)
    other = f"{WORDS}={trained(program, tokenizer)}"
    serve = ",".join(f"{model}=127.0.0.1:{port}" for model, ports in workers.items() for port in ports)
    listen = ",".join(f"127.0.0.1:{port}" for port in backends)
    commands = {
        "backend": [str(program), "backend", f"-listen={listen}", f"-models={','.join(MODELS)}"],
        "worker": [str(program), "worker", f"-serve={serve}", f"-tokenizer={tokenizer}", f"-tokenizer-of={other}", f"-template={template}"],
    }
    mocks: dict[str, Pinned] = {}
    for name, command in commands.items():
        mocks[name] = Pinned(command, rig_cores, log=folder / f"{name}.log")
        closing.callback(mocks[name].stop)
        _await_ready(mocks[name])
    site = Site(backends=[f"http://127.0.0.1:{port}" for port in backends], workers=workers, scratch=folder, cores=router_cores)
    return Rig(program, rig_cores, mocks), site


def _text_rules(folder: Path) -> tuple[Path, Path]:
    """The tiny model's tokenizer and template: what the mock workers say is theirs."""
    spec = find_spec("pagoda_worker")  # found, not imported
    assert spec is not None
    assert spec.submodule_search_locations is not None
    tiny = Path(spec.submodule_search_locations[0]) / "builtin" / "tiny"
    template = folder / "chat_template.jinja"
    template.write_text(json.loads((tiny / "tokenizer_config.json").read_text())["chat_template"])
    return tiny / "tokenizer.json", template


def _await_ready(mock: Pinned) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while "ready" not in mock.log.read_text():
        if mock.ended() or time.monotonic() > deadline:
            raise PeerUnavailable(f"a mock did not start: {mock.last_words()}")
        time.sleep(0.02)


def _start(names: Sequence[str], site: Site, closing: ExitStack, unavailable: dict[str, str]) -> list[RouterSystem]:
    systems: list[RouterSystem] = []
    for name, start in STARTERS.items():
        if name in names or name == DIRECT:
            try:
                system = start(site)
            except PeerUnavailable as error:
                unavailable[name] = str(error)
                _say(f"{name}: not measured: {error}")
            else:
                closing.callback(system.stop)
                systems.append(system)
                _say(f"{name}: up")
    return systems


def _rounds(scenario: Scenario, systems: Sequence[RouterSystem], rig: Rig, options: Options) -> Mapping[str, list[Measured]]:
    is_soak = scenario.case == SOAK.case
    # A soak's first third is its warm-up: caches fill and the allocator grows to its working size.
    warm_up_s, window_s = (options.soak_s / 3, options.soak_s * 2 / 3) if is_soak else (WARM_UP_S, options.window_s)
    taken: dict[str, list[Measured]] = {}
    for system in systems:
        system.pause()
    for _ in range(1 if is_soak else options.rounds):
        for system in systems:
            before = taken.setdefault(system.name, [])
            if (scenario.only and system.name not in scenario.only) or (before and _is_hopeless(scenario, before[-1])):
                continue
            system.resume()
            try:
                one = rig.measure(scenario, system, warm_up_s=warm_up_s, window_s=window_s)
            except LoadFailed as error:
                _say(f"{scenario.case} {system.name}: {error}")
                _settle(system)
            else:
                before.append(one)
                _say(_line(scenario, system.name, one))
                if one.errors or _is_hopeless(scenario, one):
                    _settle(system)
            finally:
                system.pause()  # the core is the next one's
    return {name: measured for name, measured in taken.items() if measured}


def _usage_of(system: RouterSystem) -> str:
    system.resume()
    try:
        return counted_usage(system)
    finally:
        system.pause()


def _settle(system: RouterSystem) -> None:
    """One that was overloaded works off what nobody waits for any more: else the next case would find it busy with this one."""
    deadline = time.monotonic() + LONGEST_SETTLING_S
    before_s = system.cpu_s()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now_s = system.cpu_s()
        if now_s - before_s < 0.5 * IDLE_SHARE:
            return
        before_s = now_s


def _scaling(program: Path, folder: Path, scenarios: Sequence[Scenario], options: Options) -> dict[str, Mapping[str, list[Measured]]]:
    """One process and two of ours in turn, which may use both cores as the rig may: who has two cores has no third for it."""
    both = two_cores()
    with ExitStack() as closing:
        folder.mkdir()
        rig, site = start_mocks(program, folder, both, both, closing)
        site = replace(site, interpreter=options.interpreter)
        systems: list[RouterSystem] = []
        for processes in (1, 2) if scenarios else ():
            own = folder / f"x{processes}"
            own.mkdir()
            systems.append(pagoda(replace(site, scratch=own, processes=processes)))
            closing.callback(systems[-1].stop)
        return {scenario.case: _rounds(scenario, systems, rig, options) for scenario in scenarios}


def _is_hopeless(scenario: Scenario, one: Measured) -> bool:
    asked = one.errors + one.requests if scenario.rate is None else scenario.rate * one.seconds
    return one.requests <= HOPELESS_SHARE * asked


def _line(scenario: Scenario, name: str, one: Measured) -> str:
    what = scenario.counts
    figures = f"{one.per_s(what):9,.0f} {what}/s, TTFT {one.ttft_p50_s * 1e3:.2f} / {one.ttft_p99_s * 1e3:.2f} ms"
    if scenario.tells_pauses:
        figures += f", pauses {one.itl_p50_s * 1e3:.1f} / {one.itl_p99_s * 1e3:.1f} / {one.itl_max_s * 1e3:.1f} ms"
    cpu = 1e6 * one.router_cpu_s / max(1, one.count(what))
    failed = f", {one.errors} failed: {one.first_error[:120]}" if one.errors else ""
    ceiling = f"rig's ceiling {one.ceiling_per_s(what):,.0f}/s, late p99 {one.late_p99_s * 1e3:.2f} ms"
    return f"{scenario.case:18} {name:14} {figures}, CPU {cpu:7.1f} ms per 1k, {ceiling}{failed}"


def _say(line: str) -> None:
    print(line, flush=True)
