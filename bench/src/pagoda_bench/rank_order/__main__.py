"""`python -m pagoda_bench.rank_order`: the simulator's order of policies beside that of a real router (five minutes).

Real: router process, HTTP, gRPC sessions, time, and once the engines too. Its tables are written into docs/routing.md.
"""

import argparse
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from pagoda_bench.errors import BenchError
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.rank_order.compare import APART, SEED, TIES, WORKLOADS, paced, real
from pagoda_bench.rank_order.paced_fleet import PACE, WORKERS
from pagoda_bench.rank_order.real_workers import MAX_RUNNING, SHORTER, TENANTS
from pagoda_bench.results import FOLDER, read, result_here, write
from pagoda_bench.sim.pages import RANK_ORDER, write_page

KINDS = ("paced", "real")
PACKAGES = ("pagoda-bench", "pagoda-router", "pagoda-worker")


def main() -> int:
    raise_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.rank_order", description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of arrivals at played workers, for each workload and policy")
    parser.add_argument("--real-seconds", type=float, default=16.0, help="the same at real ones")
    parser.add_argument("--only", choices=KINDS, help="one of the two")
    parser.add_argument("--workload", choices=WORKLOADS, action="append", help="of the real part; all unless told")
    parser.add_argument("--output", type=Path, help="the result file; without it that of docs/routing.md, with its table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rank-order-") as scratch:
        folder = Path(scratch)
        try:
            rows = [] if arguments.only == "real" else list(paced(arguments.seconds, folder))
            rows += [] if arguments.only == "paced" else real(arguments.real_seconds, folder, arguments.workload or WORKLOADS)
        except BenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    notes = [
        f"paced: a router process, asked over HTTP, before {WORKERS} workers with real sessions whose steps the model plays",
        f"their steps take {PACE:g} times an H100's",
        f"real: `pagoda up` with two workers of one core and a random Llama of 0.1B, maxRunning {MAX_RUNNING}",
        *(f"{name} real: prompts are 1/{prompts}, answers 1/{answers} of the workload's" for name, (prompts, answers) in SHORTER.items()),
        f"shared-prefix real: {TENANTS} tenants, so many a worker as where 8 workers have 150",
        "how fast the simulator's workers are is measured on them in the same run (engine: step_…)",
        f"simulated_: the same users (seed {SEED}) and workers in the simulator; medians and extremes of {TIES} ways to break ties",
        f"pairs count where the simulated p95s differ {APART:g}-fold and by more than those extremes",
        "tied: real p95s within each other's spread, which is the middle four fifths of p95s of requests drawn again",
    ]
    command = shlex.join(["python", "-m", "pagoda_bench.rank_order", *sys.argv[1:]])
    result = result_here(RANK_ORDER, rows, command=command, packages=PACKAGES, notes=notes)
    output = arguments.output or FOLDER / f"{RANK_ORDER}.json"
    if (arguments.only or arguments.workload) and output.is_file():  # the rest stays as it was measured
        measured = {row.case for row in rows}
        kept = [row for row in read(output).rows if row.case not in measured and row.case.split()[-1] in KINDS]
        result = replace(result, rows=(*kept, *rows))
    write(result, output)
    if arguments.output is None:
        write_page(result)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
