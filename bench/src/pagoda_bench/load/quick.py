"""`make bench`: the product on this machine, started as a user starts it, under a short closed-loop and a short open-loop sweep.

Everything measured goes through the code of `pagoda bench run`; writes bench/results/load.{json,md,csv} and pictures.
"""

import argparse
import sys
from pathlib import Path

from pagoda_bench.errors import BenchError
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.load.present import measure_and_write
from pagoda_bench.load.scenarios import Scenario
from pagoda_bench.load.settings import Level, RunSettings
from pagoda_bench.load.slo import Slo
from pagoda_bench.local_stack import local_stack
from pagoda_bench.results import FOLDER

REPOSITORY = Path(__file__).parents[4]
MANIFEST = REPOSITORY / "docs" / "quickstart" / "inferencemodel.yaml"
USERS = (1, 8, 32)
RATES_PER_S = (2.0, 6.0, 12.0)


def main() -> int:
    raise_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=FOLDER / "load", help="path without suffix")
    parser.add_argument("--note", action="append", default=[], help="what a reader must know of the machine")
    args = parser.parse_args()
    print(f"bench: starting {MANIFEST.relative_to(REPOSITORY)}", flush=True)
    try:
        with local_stack(MANIFEST) as stack:
            settings = RunSettings(
                url=stack.url,
                system="pagoda",
                label="tiny",
                scenario=Scenario.SHORT,
                levels=(*(Level("closed", users) for users in USERS), *(Level("poisson", rate) for rate in RATES_PER_S)),
                requests_per_user=None,
                duration_s=12.0,
                slo=Slo(ttft=0.5, tpot=0.05),
            )
            measure_and_write(settings, args.output, command="make bench", packages=("pagoda-worker", "torch"), notes=args.note)
    except (BenchError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
