"""`make profile`: the three largest costs of an engine's decode step and of a request in the router, for two models, alone and 32 at once.

Starts the parts as processes and knows them by their command lines only. Prints lines, writes chrome traces of the engine under .profile/
and one result file.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.profile.costs import Profiled
from pagoda_bench.profile.engine import profile_engine
from pagoda_bench.profile.router import Load, profile_router
from pagoda_bench.random_llama import write_half_billion
from pagoda_bench.results import FOLDER, Row, result_here, write

NOTES = (
    "low and high are the least and the most of the repeats",
    "step_s and request_s are without any profiler; the parts are from separate runs with one, so their sum differs a little",
    "on a CPU nearly every step is one native call in step_s and operation by operation in its parts, whose sum is therefore larger",
    "request_s is CPU time of the router's process per request, waiting not counted",
)
PACKAGES = ("torch", "uvicorn", "uvloop", "grpcio", "tokenizers", "fastokens")
STEPS = {"tiny": 60, "0.45b": 10}
"""Measured in each repeat: about as long for both."""
LOADS = {"tiny": (16, 4), "0.45b": (2, 1)}
"""Requests alone, and rounds of concurrent ones."""


def main() -> None:
    raise_on_sigterm()
    parser = argparse.ArgumentParser(prog="make profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(STEPS), default=list(STEPS))
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--parts", nargs="+", choices=["engine", "router"], default=["engine", "router"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--work", type=Path, default=Path(".profile"), help="folder for traces and the random model, ignored by git")
    parser.add_argument("--output", type=Path, default=FOLDER / "profile.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    command = "make profile" if len(sys.argv) == 1 else f"python -m pagoda_bench.profile {shlex.join(sys.argv[1:])}"
    rows: list[Row] = []
    for profiled, details in _cases(args):
        _say([*profiled.lines(), *details])
        rows += profiled.rows()
        # After every case: a run that is cut off leaves what it had.
        write(result_here("profile", rows, command=command, packages=PACKAGES, notes=NOTES), args.output)
    _say([f"wrote {args.output}"])


def _cases(args: argparse.Namespace) -> Iterator[tuple[Profiled, list[str]]]:
    for model in args.models:
        folder, source = _model(model, args.work)
        for sequences in args.sequences if "engine" in args.parts else ():
            sizes = {"prompt_tokens": args.prompt_tokens, "steps": STEPS[model], "repeats": args.repeats}
            yield profile_engine(model, folder, sequences=sequences, traces=args.work, **sizes)
        if "router" in args.parts:
            alone, rounds = LOADS[model]
            load = Load(alone=alone, rounds=rounds, output_tokens=args.output_tokens, repeats=args.repeats)
            for profiled in profile_router(model, source, streams=args.sequences, load=load):
                yield profiled, []


def _model(name: str, work: Path) -> tuple[Path, str]:
    """Its folder, and how a manifest names it."""
    if name == "tiny":
        spec = find_spec("pagoda_worker")  # found, not imported
        assert spec is not None
        assert spec.submodule_search_locations is not None
        return Path(spec.submodule_search_locations[0]) / "builtin" / "tiny", "builtin://tiny"
    folder = work.resolve() / "llama-0.45b"
    write_half_billion(folder)
    return folder, f"file://{folder}"


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
