"""`python -m pagoda_bench.across_workers` (`make bench-speculation-router`): what it gains to draft on one worker and verify on another,
and from which round trip on it gains nothing; result file `speculation-router` with its picture, and a table of docs/speculation.md.

Two real workers with the shipped pair of models and a real router. The models are so small that the network would be all there is to see:
so each step waits until it took what it would of a larger model (`--step-ms`, `--draft-step-ms`), and nothing else is played.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from pagoda_bench.across_workers.document import points_of, with_table
from pagoda_bench.across_workers.measure import DRAFT_TOKENS, MAX_TOKENS, measure
from pagoda_bench.across_workers.pair import Pace
from pagoda_bench.across_workers.plot import draw
from pagoda_bench.errors import BenchError
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.results import FOLDER, Row, result_here, write
from pagoda_bench.speculation.document import DOCUMENT
from pagoda_bench.speculation.work import MIX, Case, prompts_of
from pagoda_bench.tiny.corpus import TASKS
from pagoda_bench.tiny.models import FOLDERS

ROUND_TRIPS_MS = (0.0, 20.0, 50.0, 100.0, 200.0)
STEPS_MS = (20.0, 40.0)
TEMPERATURES = (0.0, 2.0)
"""The shipped pair was trained on the same tasks: greedy, nearly every draft holds. Hot, as many as of a usual pair."""
STREAMS = (1, 8)
DRAFT_STEP_MS = 4.0


def main(arguments: list[str]) -> int:
    raise_on_sigterm()
    options = _parser().parse_args(arguments)
    load = os.getloadavg()[0]
    tokenizer = Tokenizer.from_file(str(options.target / "tokenizer.json"))
    rounds = {
        streams: [prompts_of(Case(MIX, streams, max(streams, len(TASKS))), tokenizer, number=number) for number in range(options.rounds)]
        for streams in options.streams
    }
    paces = [Pace(target_s=step_ms / 1000, draft_s=options.draft_step_ms / 1000) for step_ms in options.step_ms]

    async def collect(scratch: Path) -> list[Row]:
        measuring = measure(
            paces,
            options.temperature,
            [round_trip_ms / 1000 for round_trip_ms in options.rtt_ms],
            rounds,
            target=options.target,
            draft=options.draft,
            scratch=scratch,
            say=lambda line: print(line, flush=True),
        )
        return [row async for row in measuring]

    with tempfile.TemporaryDirectory(prefix="pagoda-across-") as scratch:
        rows = asyncio.run(collect(Path(scratch)))
    command = " ".join(["python -m pagoda_bench.across_workers", *arguments]) if arguments else "make bench-speculation-router"
    result = result_here("speculation-router", rows, command=command, notes=_notes(options, load))
    path = options.output or FOLDER / "speculation-router.json"
    write(result, path)
    draw(points_of(result), path.with_suffix(".png"), draft_step_ms=options.draft_step_ms)
    if options.output is None:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), result))
    print(f"wrote {os.path.relpath(path)}")
    return 0


def _notes(options: argparse.Namespace, load: float) -> list[str]:
    return [
        (
            "two workers and a router on one machine; each step of the model waits until it took its time, each of the draft model until "
            f"it took {options.draft_step_ms:g} ms, however many tokens are in it, as where reading large weights is all that a step does"
        ),
        "the round trip is added on the way between the router and each of the two workers, half of it each way",
        (
            f"one answer at a time, or as many as there are streams, at most {MAX_TOKENS} tokens, of the tiny model's tasks in turn, each "
            "asked with drafts and without, with one seed; time from the requests to the end of all of their answers; "
            f"{DRAFT_TOKENS} drafts in one step at most"
        ),
        f"medians of {options.rounds} rounds, in brackets the extremes; aimed at where a round trip is no longer than a step",
        f"load average of the machine before: {load:.1f}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.across_workers", description="What drafts from another worker gain.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--temperature", type=float, nargs="+", default=TEMPERATURES, help="of sampling; the hotter, the fewer drafts hold")
    parser.add_argument("--step-ms", type=float, nargs="+", default=STEPS_MS, help="of the model that is served")
    parser.add_argument("--draft-step-ms", type=float, default=DRAFT_STEP_MS, help="of the model that drafts")
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=ROUND_TRIPS_MS, help="between the router and each worker")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="answers at once; several with the first step time only")
    parser.add_argument("--target", type=Path, default=FOLDERS["target"], help="folder of the model that is served")
    parser.add_argument("--draft", type=Path, default=FOLDERS["draft"], help="folder of the model that drafts")
    parser.add_argument("--output", type=Path, help="in place of bench/results/speculation-router.json; the document then stays as it is")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        sys.exit(f"speculation across workers: {error}")
