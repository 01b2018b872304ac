"""`make bench-peers`: Pagoda and its peers side by side in one run, into bench/results/peers.json and peers.md."""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from pagoda_bench.errors import BenchError, SettingsError
from pagoda_bench.hardware import read_hardware
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.peers.bandwidth import bandwidth_rows, bytes_per_token, read_bytes_per_s
from pagoda_bench.peers.cases import MODELS, Case, Model, model_named
from pagoda_bench.peers.compare import OURS, Measured, rows
from pagoda_bench.peers.environment import environments
from pagoda_bench.peers.recipes import NOT_SET_UP, RECIPES, Recipe, described, python_for
from pagoda_bench.peers.rounds import measure
from pagoda_bench.peers.system import PeerUnavailable, System
from pagoda_bench.peers.table import render
from pagoda_bench.results import FOLDER, Row, result_here, write

REFERENCE = "transformers"
"""Whose greedy text the others are compared with; without it, Pagoda's."""
BENCHMARK = "peers"
STREAMS = {"tiny": (1, 8, 32, 64), "0.45b": (1, 8, 32)}


def chosen(names: Sequence[str] | None) -> list[Recipe]:
    """Those by default, or those named, Pagoda always among them and first. Raises SettingsError for an unknown name."""
    known = {recipe.system: recipe for recipe in RECIPES}
    if unknown := [name for name in names or () if name not in known]:
        raise SettingsError(f"no recipe for {', '.join(unknown)}: one of {', '.join(known)}")
    return [recipe for recipe in RECIPES if recipe.system == OURS or (recipe.system in names if names else recipe.by_default)]


def interpreters(recipes: Sequence[Recipe], device: str, unavailable: dict[str, str]) -> dict[str, Path]:
    """By system; installs what is missing."""
    found: dict[str, Path] = {}
    for recipe in recipes:
        try:
            found[recipe.system] = python_for(recipe, device)
        except PeerUnavailable as error:
            unavailable[recipe.system] = str(error)
            _say(f"{recipe.system}: not measured: {error}")
    return found


def measure_model(
    model: Model,
    cases: Sequence[Case],
    recipes: Sequence[Recipe],
    pythons: Mapping[str, Path],
    rounds: int,
    scratch: Path,
    unavailable: dict[str, str],
) -> list[Measured]:
    """All systems are up at once and idle while another one runs; they end together."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    systems: dict[str, System] = {}
    measured: list[Measured] = []
    with ExitStack() as closing:
        for recipe in recipes:
            if recipe.system not in pythons:
                continue
            _say(f"starting {recipe.system} with {model.name}")
            try:
                systems[recipe.system] = system = recipe.start(pythons[recipe.system], model, scratch, device)
            except PeerUnavailable as error:
                unavailable[f"{recipe.system} ({model.name})"] = str(error)
                _say(f"{recipe.system}: not measured: {error}")
            else:
                closing.callback(system.stop)
        reference = REFERENCE if REFERENCE in systems else OURS
        for case in cases:
            measured += measure(case, systems, rounds, reference=reference, unavailable=unavailable, say=_say)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="only install the peers")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help=f"of {', '.join(recipe.system for recipe in RECIPES)}")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--streams", type=int, nargs="+", help="default: 1 8 32, and 64 of the tiny model")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of peers.json and peers.md")
    args = parser.parse_args()
    raise_on_sigterm()
    try:
        run(args)
    except BenchError as error:
        sys.exit(f"bench-peers: {error}")


def run(args: argparse.Namespace) -> None:
    if min(args.rounds, args.prompt_tokens, args.output_tokens, *(args.streams or ())) < 1:
        raise SettingsError("rounds, lengths and streams are at least 1")
    recipes = chosen(args.peers)
    unavailable: dict[str, str] = {} if args.peers else dict(NOT_SET_UP)
    pythons = interpreters(recipes, "cuda" if torch.cuda.is_available() else "cpu", unavailable)
    if args.install:
        return
    hardware = read_hardware(())
    measured: list[Measured] = []
    models: list[Model] = []
    bandwidth: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="pagoda-peers-") as folder:
        for name in args.models:
            model = model_named(name, scratch=environments() / "models", cores=hardware.cores)
            models.append(model)
            streams_of = args.streams or STREAMS[name]
            cases = [Case(name, streams, args.prompt_tokens, args.output_tokens) for streams in streams_of]
            here = measure_model(model, cases, recipes, pythons, args.rounds, Path(folder), unavailable)
            measured += here
            if name == "0.45b" and (alone := next((one for one in here if (one.case, one.system) == (f"{name} c=1", OURS)), None)):
                token_bytes = bytes_per_token(model.folder)
                bandwidth += bandwidth_rows(alone.case, OURS, alone.tokens_per_s, token_bytes, read_bytes_per_s(model.threads))
    if not any(one.system == OURS for one in measured):
        raise PeerUnavailable(next((why for name, why in unavailable.items() if name.startswith(OURS)), "Pagoda was not measured"))
    report(
        args,
        [described(recipe, pythons[recipe.system]) for recipe in recipes if recipe.system in pythons],
        models,
        measured,
        bandwidth,
        unavailable,
    )


def report(
    args: argparse.Namespace,
    settings: Sequence[str],
    models: Sequence[Model],
    measured: Sequence[Measured],
    bandwidth: Sequence[Row],
    unavailable: Mapping[str, str],
) -> None:
    command = "make bench-peers" if len(sys.argv) == 1 else f"python -m pagoda_bench.peers {shlex.join(sys.argv[1:])}"
    notes = [
        f"prompt {args.prompt_tokens}, output {args.output_tokens} tokens, greedy, end token ignored, bf16",
        f"{args.rounds} alternating rounds after one that does not count: medians, low and high over rounds (TTFT: over requests)",
        f"compute threads: {', '.join(f'{model.name} {model.threads}' for model in models)}; OpenVINO has 2 at least",
        "same text: mean share of the greedy text, from its start, equal to that of the system without this figure",
        *settings,
    ]
    found = [*rows(measured), *bandwidth]
    result = result_here(
        BENCHMARK, found, command=command, notes=[*notes, *(f"{name}: not measured: {why}" for name, why in unavailable.items())]
    )
    write(result, args.output / f"{BENCHMARK}.json")
    hardware = read_hardware(())
    text = render(
        found, unavailable, command=command, hardware_line=f"{hardware.line()}, commit {hardware.commit}, {hardware.date}", notes=notes
    )
    (args.output / f"{BENCHMARK}.md").write_text(text)
    _say(f"\n{text}\nwrote {args.output / BENCHMARK}.json and .md")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
