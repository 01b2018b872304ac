"""`python -m pagoda_bench.rank_order`: the simulator's order of policies beside that of a real router (five minutes).

Real: router process, HTTP, gRPC sessions, time, and with tiny workers the engines too. Its tables are written into docs/routing.md.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from pagoda_bench.errors import BenchError
from pagoda_bench.rank_order.compare import APART, SEED, paced, tiny
from pagoda_bench.rank_order.paced_fleet import PACE, WORKERS
from pagoda_bench.rank_order.tiny_workers import SHORTER
from pagoda_bench.results import FOLDER, result_here, write
from pagoda_bench.sim.pages import RANK_ORDER, write_page

PACKAGES = ("pagoda-bench", "pagoda-router", "pagoda-worker")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.rank_order", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of arrivals, for each workload and policy")
    parser.add_argument("--only", choices=("paced", "tiny"), help="one of the two")
    parser.add_argument("--output", type=Path, help="the result file; without it that of docs/routing.md, with its table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rank-order-") as scratch:
        folder = Path(scratch)
        try:
            rows = [] if arguments.only == "tiny" else list(paced(arguments.seconds, folder))
            rows += [] if arguments.only == "paced" else tiny(arguments.seconds, folder)
        except BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    notes = [
        f"paced: a router process, asked over HTTP, before {WORKERS} workers with real sessions whose steps the model plays",
        f"their steps take {PACE:g} times an H100's",
        f"tiny: `pagoda up` with two builtin://tiny workers on this machine's cores, prompts and answers a {SHORTER}th as long",
        "how fast the simulator's tiny workers are is measured in the same run",
        f"simulated_: the same users (seed {SEED}) and workers in the simulator; pairs count where its p95 differ {APART:g}-fold",
    ]
    command = shlex.join(["python", "-m", "pagoda_bench.rank_order", *sys.argv[1:]])
    result = result_here(RANK_ORDER, rows, command=command, packages=PACKAGES, notes=notes)
    output = arguments.output or FOLDER / f"{RANK_ORDER}.json"
    write(result, output)
    if arguments.output is None and arguments.only is None:
        write_page(result)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
