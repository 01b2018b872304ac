"""`python -m pagoda_bench.speculation` (`make bench-speculation`): what guessing gains, by method and streams; result file `speculation`
and the table of docs/speculation.md.

`--target` and `--draft` name another pair, such as one that `python -m pagoda_bench.tiny train --model large` has trained; then neither
the result file of this checkout nor the document is touched.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer

from pagoda_bench.errors import BenchError
from pagoda_bench.hardware import read_hardware
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.peers.cases import threads_for
from pagoda_bench.results import FOLDER, result_here, write
from pagoda_bench.speculation.document import DOCUMENT, with_table
from pagoda_bench.speculation.measure import measure
from pagoda_bench.speculation.work import DRAFT_TOKENS, KV_CACHE_BYTES, cases
from pagoda_bench.tiny.models import FOLDERS


def main(arguments: list[str]) -> int:
    raise_on_sigterm()
    options = _parser().parse_args(arguments)
    own = (options.target, options.draft) == (FOLDERS["target"], FOLDERS["draft"]) and not options.quick
    device, load = "cuda" if torch.cuda.is_available() else "cpu", os.getloadavg()[0]
    tokenizer = Tokenizer.from_file(str(options.target / "tokenizer.json"))
    with tempfile.TemporaryDirectory(prefix="pagoda-speculation-") as scratch:
        rows = list(
            measure(
                [case for case in cases(quick=options.quick) if not options.case or case.name in options.case],
                model=options.target,
                draft=options.draft,
                tokenizer=tokenizer,
                device=device,
                threads=threads_for("tiny", read_hardware(()).cores),
                rounds=options.rounds,
                scratch=Path(scratch),
                say=lambda line: print(line, flush=True),
            )
        )
    notes = [
        f"on {device}, {DRAFT_TOKENS} tokens of a guess at most, greedy answers of the tiny model's tasks, other ones every round",
        "c=1 json and the like are one task alone, c=1, 8, 32 and 64 all of them in turn",
        f"medians of {options.rounds} round(s) in turning order; over none within a round, in brackets the extremes",
        f"a KV cache of {KV_CACHE_BYTES >> 20} MiB",
        f"load average of the machine before: {load:.1f}",
    ]
    command = " ".join(["python -m pagoda_bench.speculation", *arguments]) if arguments else "make bench-speculation"
    result = result_here("speculation", rows, command=command, packages=("torch",), notes=notes)
    path = options.output or (FOLDER / "speculation.json" if own else Path("speculation.json"))
    write(result, path)
    if own and options.output is None and not options.case:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), result))
    for row in rows:
        if row.aim is not None:
            print(f"{row.case}, {row.system}: {row.value:.2f} of none ({row.aim}: {'met' if row.met else 'missed'})")
    print(f"wrote {os.path.relpath(path)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.speculation", description="What guessing tokens gains.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="an eighth of the work, for a first look")
    parser.add_argument("--case", action="append", help="only this one, such as 'c=8' or 'c=1 copy'; may be repeated")
    parser.add_argument("--target", type=Path, default=FOLDERS["target"], help="folder of the model that is served")
    parser.add_argument("--draft", type=Path, default=FOLDERS["draft"], help="folder of the model that guesses")
    parser.add_argument(
        "--output", type=Path, help="result file in place of bench/results/speculation.json; the document then stays as it is"
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        sys.exit(f"speculation: {error}")
