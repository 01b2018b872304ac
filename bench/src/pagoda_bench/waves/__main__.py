"""`python -m pagoda_bench.waves`: finds the best settings with waves off and with waves on, and says whether waves pay (ten minutes)."""

import argparse
import shlex
import sys
from pathlib import Path

from pagoda_bench.errors import BenchError
from pagoda_bench.results import FOLDER, Row, result_here, write
from pagoda_bench.waves.search import LOAD, PROFILES, WORKERS, search


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.waves", description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=FOLDER / "waves.json")
    arguments = parser.parse_args()
    rows: list[Row] = []
    try:
        for profile in PROFILES:
            for row in search(profile, arguments.processes):
                rows.append(row)
                print(f"{row.case} | {row.system} | {row.metric}: {row.value:.4g}", flush=True)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes = [
        f"simulated: {WORKERS} workers asked for {LOAD:g} times what they can do, nobody refused",
        "real: the router's waiting room, prices, credits and policies",
        "each arm has the setting with most tokens/s on the tuning seed, of the same settings: policy, maxRunning, longPrefillTokens",
        "values are means over the unseen seeds, low and high their extremes; ratios are of the same users",
        "tokens: prompt and output of the requests that ended in the last half",
    ]
    command = shlex.join(["python", "-m", "pagoda_bench.waves", *sys.argv[1:]])
    write(result_here("waves", rows, command=command, packages=("pagoda-bench", "pagoda-router"), notes=notes), arguments.output)
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
