"""`make bench-gate`: the working tree against its last release in one run; exit status 1 when a figure fell by more than its noise.

Two stacks are up at once, each from its own checkout and environment; rounds alternate. About four minutes on two cores.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.errors import BenchError
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.peers.baseline import baseline, checked_out
from pagoda_bench.peers.cases import Case, Model, model_named
from pagoda_bench.peers.compare import OURS, Change, Measured, change, spread
from pagoda_bench.peers.http_systems import Pagoda
from pagoda_bench.peers.rounds import measure
from pagoda_bench.peers.system import PeerUnavailable
from pagoda_bench.results import FOLDER, Row, result_here, write

OLD = "pagoda-before"
CASES = (
    Case("tiny", 1, output_tokens=128),
    Case("tiny", 8, output_tokens=128),
    Case("0.45b", 1, output_tokens=24),
    Case("0.45b", 8, output_tokens=24),
)
"""The throughput cases in a short form."""
BENCHMARK = "gate"
TOO_WIDE = 0.3
"""Of the interval: a fall of a seventh hides in a wider one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    case: str
    metric: str
    change: Change
    """Of a figure of which more is better: tokens/s, or the inverse of a latency."""

    def line(self) -> str:
        what = "FELL" if self.change.fell else "rose" if self.change.low > 1 else "no change beyond noise"
        if self.change.high - self.change.low > TOO_WIDE:
            what += ", and too much noise to tell"
        return f"{self.case:12} {self.metric:20} {self.change.ratio:5.2f} times ({self.change.low:.2f}–{self.change.high:.2f})  {what}"


def verdicts(measured: Sequence[Measured]) -> list[Verdict]:
    """Throughput by round, and the round's mean time to first token. Cases that one side did not finish are left out."""
    found: list[Verdict] = []
    for case in dict.fromkeys(one.case for one in measured):
        sides = {one.system: one for one in measured if one.case == case}
        if OURS not in sides or OLD not in sides:
            continue
        new, old = sides[OURS], sides[OLD]
        found.append(Verdict(case, "output_tokens_per_s", change(new.tokens_per_s, old.tokens_per_s)))
        found.append(Verdict(case, "1/ttft", change(_first_token_rates(new), _first_token_rates(old))))
    return found


def _first_token_rates(one: Measured) -> list[float]:
    rounds = len(one.tokens_per_s)
    width = len(one.ttft_s) // rounds
    return [width / sum(one.ttft_s[i * width : (i + 1) * width]) for i in range(rounds)]


def measure_model(model: Model, rounds: int, program: Path, scratch: Path, unavailable: dict[str, str]) -> list[Measured]:
    """Raises PeerUnavailable when one of the two does not start."""
    measured: list[Measured] = []
    with ExitStack() as closing:
        systems = {}
        for name, command in ((OURS, None), (OLD, program)):
            systems[name] = Pagoda(model, scratch=scratch, program=command)
            closing.callback(systems[name].stop)
        for case in (case for case in CASES if case.model == model.name):
            measured += measure(case, systems, rounds, reference=OLD, unavailable=unavailable, say=_say)
    return measured


def rows(measured: Sequence[Measured], found: Sequence[Verdict]) -> list[Row]:
    speeds = [(one, spread(one.tokens_per_s)) for one in measured]
    return [
        *(
            Row(case=one.case, system=one.system, metric="output_tokens_per_s", value=s.median, unit="tokens/s", low=s.low, high=s.high)
            for one, s in speeds
        ),
        *(
            Row(
                case=v.case,
                system=OURS,
                metric=f"{v.metric}_change",
                value=v.change.ratio,
                unit="ratio",
                low=v.change.low,
                high=v.change.high,
            )
            for v in found
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--against", metavar="REF", default=os.environ.get("AGAINST") or None, help="commit or tag instead of the last release"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--models", nargs="+", choices=["tiny", "0.45b"], default=["tiny", "0.45b"])
    parser.add_argument("--output", type=Path, help=f"folder for {BENCHMARK}.json (like {FOLDER}); without it nothing is written")
    args = parser.parse_args()
    raise_on_sigterm()
    try:
        fell = run(args)
    except (BenchError, ValueError) as error:
        sys.exit(f"bench-gate: {error}")
    sys.exit(1 if fell else 0)


def run(args: argparse.Namespace) -> bool:
    """Whether any figure fell."""
    old = baseline(args.against)
    _say(f"the working tree against {old.commit} ({old.why})")
    measured: list[Measured] = []
    unavailable: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="pagoda-gate-") as folder, checked_out(old.commit, Path(folder) / "before") as program:
        for name in args.models:
            model = model_named(name, scratch=Path(folder), cores=len(os.sched_getaffinity(0)))
            measured += measure_model(model, args.rounds, program, Path(folder), unavailable)
    if unavailable:
        raise PeerUnavailable("; ".join(f"{name}: {why}" for name, why in unavailable.items()))
    found = verdicts(measured)
    _say("\nnew over old, mean over rounds (99 % interval); above 1 is better")
    for verdict in found:
        _say(verdict.line())
    if args.output:
        command = "make bench-gate" if len(sys.argv) == 1 else f"python -m pagoda_bench.peers.gate {shlex.join(sys.argv[1:])}"
        notes = [
            f"against {old.commit} ({old.why})",
            f"{args.rounds} alternating rounds; _change: geometric mean and 99 % interval of new over old",
        ]
        write(result_here(BENCHMARK, rows(measured, found), command=command, notes=notes), args.output / f"{BENCHMARK}.json")
    return any(verdict.change.fell for verdict in found)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
