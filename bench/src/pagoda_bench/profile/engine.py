"""Profiles the engine's decode step by starting `python -m pagoda_worker.offline.profiling` for each case. Called by __main__."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda_bench.profile.costs import Profiled, costs_of

AS_SERVED = {"GOMP_SPINCOUNT": "100"}
"""As the worker's front starts its engine: threads that wait soon sleep."""


def profile_engine(
    name: str, folder: Path, *, sequences: int, prompt_tokens: int, steps: int, repeats: int, traces: Path
) -> tuple[Profiled, list[str]]:
    """The case, and lines about its operators. Writes a chrome trace."""
    trace = traces / f"engine-{name}-{sequences}.trace.json.gz"
    job = {
        "model_dir": str(folder),
        "sequences": sequences,
        "prompt_tokens": prompt_tokens,
        "steps": steps,
        "repeats": repeats,
        "trace": str(trace),
    }
    result = decode_profile(job)
    profiled = Profiled(f"engine {name} c={sequences}", "step", result["step_s"], costs_of(result["phases_s"]))
    operators = ", ".join(f"{each['name']} {100 * each['share']:.0f} %" for each in result["operators"][:5])
    return profiled, [f"  operators: {operators}", f"  {result['device']}, {result['dtype']}, {result['threads']} threads; trace {trace}"]


def decode_profile(job: Mapping[str, Any]) -> dict[str, Any]:
    """What `python -m pagoda_worker.offline.profiling` answers to a job. Raises RuntimeError with what it said when it fails."""
    command = [sys.executable, "-m", "pagoda_worker.offline.profiling"]
    env = {**AS_SERVED, **os.environ}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=env, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
