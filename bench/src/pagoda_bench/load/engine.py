"""`pagoda bench engine`: the engine alone, offline, without HTTP. Starts `python -m pagoda_worker.offline` once a round and reads its JSON.

Imports nothing of the worker: a process and a JSON object are what they share.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from pagoda_bench.errors import SettingsError
from pagoda_bench.results import Row

METRICS: dict[str, tuple[str, str, float]] = {
    # metric of the result: (key of offline's answer, unit, factor)
    "output_tokens_per_s": ("tokens_per_s", "tokens/s", 1.0),
    "ttft_p50_s": ("ttft_p50_ms", "s", 1e-3),
    "ttft_max_s": ("ttft_max_ms", "s", 1e-3),
    "decode_step_s": ("decode_step_ms", "s", 1e-3),
    "prefill_tokens_per_s": ("prefill_tokens_per_s", "tokens/s", 1.0),
    "kv_in_use_peak_ratio": ("kv_in_use_peak_ratio", "1", 1.0),
    "kv_in_use_mean_ratio": ("kv_in_use_mean_ratio", "1", 1.0),
    "kv_capacity_tokens": ("kv_capacity_tokens", "tokens", 1.0),
    "kv_bytes_per_token": ("kv_bytes_per_token", "bytes", 1.0),
    "device_peak_bytes": ("device_peak_bytes", "bytes", 1.0),
    "host_peak_bytes": ("host_peak_bytes", "bytes", 1.0),
    "load_s": ("load_s", "s", 1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineJob:
    model: str
    """A Hugging Face folder, `builtin://tiny`, or `random://0.45b` (a Llama of that size, written first)."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Requests given at once."""
    prompt_tokens: int = 128
    output_tokens: int = 64
    rounds: int = 3
    vocab: int = 200
    """Prompts draw ids below it; ordinary text in every vocabulary."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further fields of offline's job: device, dtype, threads, …"""


def measure(job: EngineJob) -> Iterator[Row]:
    """Yields the rows of each batch size when it is done; value is the median round, low and high the extremes. Raises SettingsError."""
    with model_folder(job.model) as folder:
        for size in job.batch_sizes:
            rounds = [_offline(job, folder, size, seed) for seed in range(job.rounds)]
            yield from rows(f"{model_name(job.model)} n={size}", rounds, job.prompt_tokens * size)


def rows(case: str, rounds: Sequence[dict[str, Any]], prompt_tokens: int) -> Iterator[Row]:
    for metric, (key, unit, factor) in METRICS.items():
        values = [one[key] * factor for one in rounds if one.get(key) is not None]
        if values:
            yield _row(case, metric, unit, values)
    totals = [(one["tokens"] + prompt_tokens) / one["seconds"] for one in rounds]
    yield _row(case, "total_tokens_per_s", "tokens/s", totals)


def _row(case: str, metric: str, unit: str, values: Sequence[float]) -> Row:
    return Row(case=case, system="pagoda", metric=metric, value=median(values), unit=unit, low=min(values), high=max(values))


def _offline(job: EngineJob, folder: Path, size: int, seed: int) -> dict[str, Any]:
    prompts = {"count": size, "prompt_tokens": job.prompt_tokens, "vocab": job.vocab, "seed": seed}
    content = {"model_dir": str(folder), "random": prompts, "max_tokens": job.output_tokens, "ignore_eos": True, "warmup": True}
    asked = json.dumps({**content, **dict(job.options)})
    done = subprocess.run([sys.executable, "-m", "pagoda_worker.offline"], input=asked, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise SettingsError(f"the engine did not run: {last[0]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@contextmanager
def model_folder(model: str) -> Iterator[Path]:
    if model == "builtin://tiny":
        yield builtin_tiny()
    elif model == "random://0.45b":
        from pagoda_bench.random_llama import write_half_billion  # imports torch

        with tempfile.TemporaryDirectory() as temporary:
            write_half_billion(Path(temporary))
            yield Path(temporary)
    elif (Path(model) / "config.json").exists():
        yield Path(model)
    else:
        raise SettingsError(f"{model} is no model: give a Hugging Face folder, builtin://tiny or random://0.45b")


def builtin_tiny() -> Path:
    """The shipped folder, found without importing the worker. Raises SettingsError."""
    spec = find_spec("pagoda_worker")
    if spec is None or spec.submodule_search_locations is None:
        raise SettingsError("pagoda-worker is not installed here: pip install pagoda-worker")
    return Path(spec.submodule_search_locations[0]) / "builtin" / "tiny"


def model_name(model: str) -> str:
    return model.partition("://")[2] or Path(model).name


def table(measured: Sequence[Row]) -> str:
    """Markdown: one line a metric, one column a case."""
    cases = list(dict.fromkeys(row.case for row in measured))
    by_key = {(row.metric, row.case): row for row in measured}
    metrics = list(dict.fromkeys(row.metric for row in measured))
    lines = ["| median of the rounds | " + " | ".join(cases) + " |", "|---|" + "---:|" * len(cases)]
    for metric in metrics:
        cells = [f"{row.value:,.4g}" if (row := by_key.get((metric, case))) else "–" for case in cases]
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
