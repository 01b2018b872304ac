"""`python -m pagoda_worker.gpu_check`: is the engine right on this machine's GPU, and how close does it come to what the device could do?

Needs torch, numpy and safetensors only: no network, no gRPC, no pytest, no transformers. Exit status 1 when a token differs or a part
fails; 0 with one line where there is no GPU to check.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

BUDGET_S = 540.0
"""Of the parts; the imports before them and the part that is running when it ends stay below a minute."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pagoda_worker.gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run of the check itself, which writes no file"
    )
    parser.add_argument("--scale", choices=["full", "small"], default="full", help="of the models that are timed")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help=f"seconds for all parts together (default {BUDGET_S:g})")
    parser.add_argument("--output", type=Path, help="default: gpu-check.json in $OUT, else in bench/results")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORDS",
        help="run the parts with these words in their names, and keep what the file has of others; may be given again",
    )
    args = parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None:
        print(
            f"gpu-check: {sys.executable} has no torch, so nothing was checked; name one that has: make gpu-check PYTHON=/path/to/python3"
        )
        return 0
    if args.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton: a dry run computes with its interpreter
    import torch  # after the look for it

    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device here, so nothing was checked")
        return 0
    from pagoda_worker.gpu_check.device import describe
    from pagoda_worker.gpu_check.report import Report
    from pagoda_worker.gpu_check.run import SCALES, check

    path = args.output
    if path is None and args.device == "cuda":
        path = Path(os.environ.get("OUT") or "bench/results") / "gpu-check.json"
    report = Report(command="make gpu-check", hardware=describe(torch.device(args.device)), path=path)
    if args.only:
        report.keep_others(args.only)
    check(SCALES[args.scale], args.device, report, args.budget_s, args.only)
    if path is not None:
        report.line(f"wrote {path}")
    if report.failures:
        report.line(f"gpu-check: not met or failed: {', '.join(report.failures)}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
