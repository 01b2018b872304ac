"""`python -m pagoda_bench.speculation` (`make bench-speculation`): what guessing gains, by method and streams; result file `speculation`
and its table in docs/speculation.md. `--large` (`make bench-speculation-large`) does the same with a larger target, which it trains the
first time; result file `speculation-large`, a table of its own.

`--target` and `--draft` name any other pair; then neither a result file of this checkout nor the document is touched.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer

from pagoda_bench.errors import BenchError, SettingsError
from pagoda_bench.hardware import read_hardware
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.results import FOLDER, result_here, write
from pagoda_bench.speculation.document import DOCUMENT, with_table
from pagoda_bench.speculation.measure import measure
from pagoda_bench.speculation.pairs import larger, shipped
from pagoda_bench.speculation.work import DRAFT_TOKENS, Pair, cases


def main(arguments: list[str]) -> int:
    raise_on_sigterm()
    options = _parser().parse_args(arguments)
    device, load = "cuda" if torch.cuda.is_available() else "cpu", os.getloadavg()[0]
    pair = _pair(options)
    tokenizer = Tokenizer.from_file(str(pair.target / "tokenizer.json"))
    with tempfile.TemporaryDirectory(prefix="pagoda-speculation-") as scratch:
        rows = list(
            measure(
                [case for case in cases(scale=8 if options.quick else pair.parts) if not options.case or case.name in options.case],
                pair=pair,
                tokenizer=tokenizer,
                device=device,
                rounds=options.rounds,
                scratch=Path(scratch),
                say=_say,
            )
        )
    notes = [
        pair.note,
        f"on {device}, {DRAFT_TOKENS} tokens of a guess at most, greedy answers of the tiny model's tasks, other ones every round",
        "c=1 json and the like are one task alone, c=1, 8, 32 and 64 all of them in turn",
        f"medians of {options.rounds} round(s) in turning order; over none within a round, in brackets the extremes",
        f"a KV cache of {pair.kv_cache_bytes >> 20} MiB",
        f"load average of the machine before: {load:.1f}",
    ]
    own = pair.result if not options.quick else None
    command = (
        f"make bench-{own}" if own and arguments in ([], ["--large"]) else " ".join(["python -m pagoda_bench.speculation", *arguments])
    )
    result = result_here(pair.result or "speculation", rows, command=command, packages=("torch",), notes=notes)
    path = options.output or (FOLDER / f"{own}.json" if own else Path("speculation.json"))
    write(result, path)
    if own and options.output is None and not options.case:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), result))
    for row in rows:
        if row.aim is not None:
            print(f"{row.case}, {row.system}: {row.value:.2f} of none ({row.aim}: {'met' if row.met else 'missed'})")
    print(f"wrote {os.path.relpath(path)}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _pair(options: argparse.Namespace) -> Pair:
    """Raises SettingsError, NotQuantized."""
    cores = read_hardware(()).cores
    if (options.target is None) != (options.draft is None):
        raise SettingsError("--target and --draft belong together: folders of the model that is served and of the one that guesses")
    if options.target is not None:
        if options.large:
            raise SettingsError("--large names a pair already: leave --target and --draft out")
        return Pair(target=options.target, draft=options.draft, note=f"{options.target} with {options.draft}", threads=cores)
    if options.retrain and not options.large:
        raise SettingsError("--retrain trains the larger target anew: give --large too")
    return larger(cores, _say, retrain=options.retrain) if options.large else shipped(cores)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.speculation", description="What guessing tokens gains.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="an eighth of the work, for a first look")
    parser.add_argument("--large", action="store_true", help="the larger pair; trains it the first time (a quarter of an hour without AMX)")
    parser.add_argument("--retrain", action="store_true", help="with --large: train its target anew")
    parser.add_argument("--case", action="append", help="only this one, such as 'c=8' or 'c=1 copy'; may be repeated")
    parser.add_argument("--target", type=Path, help="folder of the model that is served, with --draft")
    parser.add_argument("--draft", type=Path, help="folder of the model that guesses, with --target")
    parser.add_argument(
        "--output", type=Path, help="result file in place of bench/results/speculation.json; the document then stays as it is"
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        sys.exit(f"speculation: {error}")
