"""`make quality`: every format of the shipped model against its limits; bench/results/quality.* and the table of docs/quantization.md.

Exit status 1 when a limit is missed or a format could not be measured.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from pagoda_bench.errors import BenchError, SettingsError
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.peers.environment import environments
from pagoda_bench.quality.measure import SpeedPlan
from pagoda_bench.quality.run import Options, run
from pagoda_bench.quality.shipped import FORMATS, MODEL, candidates
from pagoda_bench.quality.table import with_tables
from pagoda_bench.results import FOLDER, read

DOCUMENT = FOLDER.parents[1] / "docs" / "quantization.md"


def main(arguments: list[str]) -> int:
    raise_on_sigterm()
    options = _parser().parse_args(arguments)
    try:
        return _run(options, " ".join(["make quality", *([f"QUALITY_ARGS={shlex.quote(shlex.join(arguments))}"] if arguments else [])]))
    except BenchError as error:
        print(f"quality: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, command: str) -> int:
    chosen = [one for one in FORMATS if not options.formats or one.label in options.formats or one is FORMATS[0]]
    if unknown := set(options.formats) - {one.label for one in FORMATS}:
        raise SettingsError(f"no format {', '.join(sorted(unknown))}; there are {', '.join(one.label for one in FORMATS)}")
    output = options.output / "quality" if options.output else FOLDER / "quality"
    with tempfile.TemporaryDirectory(prefix="pagoda-formats-") as scratch:
        settings = Options(
            tokens=options.tokens,
            per_task=options.per_task,
            speed=SpeedPlan(rounds=options.rounds) if options.rounds else None,
            speed_source=_half_billion() if options.speed_of is None else options.speed_of,
            limits={one.label: one.limits for one in chosen},
        )
        failed = run(list(candidates(chosen, Path(scratch), builtin_tiny())), settings, output=output, command=command)
    if options.output is None:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), read(output.with_suffix(".json"))))
    return 1 if failed else 0


def _half_billion() -> str:
    """The 0.45B model of the peer benchmark where it lies already."""
    folder = environments() / "models" / "llama-0.45b"
    return str(folder) if (folder / "config.json").exists() else "random://0.45b"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make quality", description=__doc__)
    parser.add_argument("--formats", type=lambda text: [part.strip() for part in text.split(";")], default=[], help="like 'int8;KV int8'")
    parser.add_argument("--tokens", type=int, default=20_000, help="of held-out text")
    parser.add_argument("--per-task", type=int, default=200, help="held-out questions of each task")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed; 0: not measured")
    parser.add_argument("--speed-of", help=f"model whose speed is measured; {MODEL} for the shipped one (default: 0.45B of random weights)")
    parser.add_argument("--output", type=Path, help="a folder in place of bench/results; the document then stays as it is")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
