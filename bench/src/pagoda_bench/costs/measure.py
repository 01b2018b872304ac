"""Runs the jobs of `costs`, each on an engine of its own, sides in turning order round by round, and makes rows of the answers.

Called by `run.py`. low and high of a row are the extremes of the rounds; ratios are taken within a round.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagoda_bench.costs.jobs import (
    ADAPTER_CASES,
    ADAPTERS,
    CONTEXT_CASES,
    INVARIANT,
    INVARIANT_CASES,
    KV_DTYPES,
    PREFIXES,
    WAYS,
    InvariantCase,
    Job,
    adapter_jobs,
    context_job,
    invariant_job,
    kv_use_jobs,
    tier_jobs,
    tier_requests,
)
from pagoda_bench.offline import OfflineWorker
from pagoda_bench.peers.compare import spread
from pagoda_bench.peers.rounds import turned
from pagoda_bench.peers.system import PeerUnavailable
from pagoda_bench.profile.engine import decode_profile
from pagoda_bench.random_adapters import write_adapters
from pagoda_bench.results import Row

MOST_LOST = 0.15
"""Of the base model's throughput, by requests of adapters."""
Say = Callable[[str], None]
Answers = dict[str, list[dict[str, Any]]]
"""By side of the comparison, then by round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where jobs run: one model on one device."""

    folder: Path
    device: str
    threads: int
    scratch: Path

    def base(self, dtype: str) -> Job:
        return {"model_dir": str(self.folder), "device": self.device, "threads": self.threads, "dtype": dtype}


def kv_use(place: Place, *, rounds: int, say: Say) -> Iterator[Row]:
    """How much of the cache is held while somebody waits for memory, and how much of that is written. Raises PeerUnavailable."""
    with closing(OfflineWorker(log=place.scratch / "worker.log")) as worker:
        base = place.base("bf16")
        found = _rounds(worker, base, kv_use_jobs(_bytes_per_token(worker, base)), rounds, say)
    yield from kv_rows(found)


def kv_rows(found: Answers) -> Iterator[Row]:
    for side, answers in found.items():
        aimed = 0.85 if side != "contiguous" else None
        yield _row(side, "kv_written_of_held_ratio", "1", _values(answers, "kv_written_of_held_at_load_ratio"), least=aimed)
        yield _row(side, "kv_held_of_capacity_ratio", "1", _values(answers, "kv_held_of_capacity_saturated_ratio"), least=aimed)
        yield _row(side, "sequences_per_step", "1", _values(answers, "sequences_per_step"))
        yield _row(side, "preemptions", "1", _values(answers, "preemptions"))
        yield _row(side, "output_tokens_per_s", "tokens/s", _values(answers, "tokens_per_s"))


def host_tier(place: Place, *, rounds: int, say: Say) -> Iterator[Row]:
    """Prefixes that do not fit into the device's cache, with and without the tier in host memory. Raises PeerUnavailable."""
    with closing(OfflineWorker(log=place.scratch / "worker.log")) as worker:
        base = place.base("bf16")
        bytes_per_token = _bytes_per_token(worker, base)
        at_once = worker.answer({**base, **tier_jobs(bytes_per_token, interval_s=0.0)["without"]})
        interval_s = 1.5 * at_once["seconds"] / len(tier_requests())
        say(f"one request every {interval_s * 1e3:.0f} ms")
        found = _rounds(worker, base, tier_jobs(bytes_per_token, interval_s=interval_s), rounds, say)
    yield from tier_rows(found, prompt_tokens=sum(_length(one) for one in tier_requests()))


def tier_rows(found: Answers, *, prompt_tokens: int) -> Iterator[Row]:
    for side, answers in found.items():
        host = _values(answers, "host_prefix_hit_tokens")
        hits = [a + b for a, b in zip(_values(answers, "prefix_hit_tokens"), host, strict=True)]
        yield _row(side, "prefix_hit_ratio", "1", [each / prompt_tokens for each in hits])
        yield _row(side, "host_prefix_hit_ratio", "1", [each / prompt_tokens for each in host])
        yield _row(side, "ttft_p50_s", "s", _values(answers, "ttft_p50_ms", 1e-3))
        yield _row(side, "ttft_p95_s", "s", _values(answers, "ttft_p95_ms", 1e-3))
        yield _row(side, "computed_tokens", "tokens", _values(answers, "computed_tokens"))
    gains = [a / b for a, b in zip(_values(found["without"], "ttft_p50_ms"), _values(found["with"], "ttft_p50_ms"), strict=True)]
    yield _row("with", "ttft_gain_over_without", "ratio", gains)
    same = float(all(answer["token_ids"] == found["without"][0]["token_ids"] for answers in found.values() for answer in answers))
    yield Row(case="with", system="pagoda", metric="same_tokens_ratio", value=same, unit="1")


def batch_invariance(places: Mapping[str, Place], *, rounds: int, say: Say) -> Iterator[Row]:
    """`places` by model. Where the device refuses the mode, it has no rows and `say` hears why. Raises PeerUnavailable."""
    for case in INVARIANT_CASES:
        if (place := places.get(case.model)) is None:
            say(f"{case.name}: no such model here (make bench-peers writes it)")
            continue
        found = _ways(case, place, rounds, say)
        yield from invariant_rows(case.name, found)


def _ways(case: InvariantCase, place: Place, rounds: int, say: Say) -> Answers:
    """Each way in a process of its own: one that is refused ends it, and threads of one must not wait in another's."""
    ways = dict(WAYS[place.device])
    found: Answers = {name: [] for name in ways}
    for number in range(rounds):
        for name in turned(list(ways), number):
            with closing(OfflineWorker(log=place.scratch / "worker.log")) as worker:
                try:
                    answer = worker.answer({**place.base(case.dtype), **invariant_job(case, ways[name])})
                except PeerUnavailable as refused:
                    if name != INVARIANT:
                        raise
                    say(f"{case.name}: {refused}")
                    del ways[name], found[name]
                    continue
            found[name].append(answer)
            say(f"round {number + 1}: {case.name}, {name:16} {answer['tokens_per_s']:8.1f} tok/s")
    return found


def invariant_rows(case: str, found: Answers) -> Iterator[Row]:
    for way, answers in found.items():
        yield _row(case, "output_tokens_per_s", "tokens/s", _values(answers, "tokens_per_s"), system=way)
        yield _row(case, "ttft_max_s", "s", _values(answers, "ttft_max_ms", 1e-3), system=way)
        yield _row(case, "decode_step_s", "s", _values(answers, "decode_step_ms", 1e-3), system=way)
    for way in found:
        if way != INVARIANT and INVARIANT in found:
            pairs = zip(_values(found[INVARIANT], "tokens_per_s"), _values(found[way], "tokens_per_s"), strict=True)
            yield _row(case, "throughput_lost_ratio", "1", [1 - mine / theirs for mine, theirs in pairs], system=way)


def quantized_kv(places: Mapping[str, Place], *, rounds: int, say: Say) -> Iterator[Row]:
    """Decode steps at long contexts, keys and values in each form. `places` by model. Raises RuntimeError when one cannot be run."""
    for case in CONTEXT_CASES:
        if (place := places.get(case.model)) is None:
            say(f"{case.name}: no such model here (make bench-peers writes it)")
            continue
        found: Answers = {kv_dtype: [] for kv_dtype in KV_DTYPES}
        for number in range(rounds):
            for kv_dtype in turned(KV_DTYPES, number):
                answer = decode_profile({**place.base("bf16"), **context_job(case, kv_dtype)})
                step_s, attention_s = answer["step_s"][0], answer["phases_s"]["attention"][0]
                found[kv_dtype].append({**answer, "decode_step_s": step_s, "attention_s": attention_s})
                say(f"round {number + 1}: {case.name}, {kv_dtype:4} {1e3 * step_s:7.2f} ms a step, {1e3 * attention_s:.2f} of it attention")
        yield from kv_dtype_rows(case.name, found)


def kv_dtype_rows(case: str, found: Answers) -> Iterator[Row]:
    for kv_dtype, answers in found.items():
        yield _row(case, "kv_bytes_per_token", "bytes", _values(answers, "kv_bytes_per_token"), system=kv_dtype)
        yield _row(case, "decode_step_s", "s", _values(answers, "decode_step_s"), system=kv_dtype)
        yield _row(case, "attention_s", "s", _values(answers, "attention_s"), system=kv_dtype)
        for part in ("decode_step", "attention") if kv_dtype != "auto" else ():
            pairs = zip(_values(answers, f"{part}_s"), _values(found["auto"], f"{part}_s"), strict=True)
            yield _row(case, f"{part}_gain_over_auto", "ratio", [theirs / mine for mine, theirs in pairs], system=kv_dtype)


def adapters(places: Mapping[str, Place], *, rounds: int, say: Say) -> Iterator[Row]:
    """What requests of LoRA adapters cost beside those of the base model. Raises PeerUnavailable."""
    for case in ADAPTER_CASES:
        if (place := places.get(case.model)) is None:
            say(f"{case.name}: no such model here (make bench-peers writes it)")
            continue
        kind = place.scratch / f"{case.model}-{case.rank}"
        folders = write_adapters(place.folder, kind, count=ADAPTERS, rank=case.rank, targets=case.targets)
        with closing(OfflineWorker(log=place.scratch / "worker.log")) as worker:
            jobs = adapter_jobs(case, {name: str(folder) for name, folder in folders.items()})
            found = _rounds(worker, place.base("bf16"), jobs, rounds, say)
        yield from adapter_rows(case.name, found)


def adapter_rows(case: str, found: Answers) -> Iterator[Row]:
    """The first side is the base model."""
    base, *_ = found
    for way, answers in found.items():
        yield _row(case, "output_tokens_per_s", "tokens/s", _values(answers, "tokens_per_s"), system=way)
        yield _row(case, "decode_step_s", "s", _values(answers, "decode_step_ms", 1e-3), system=way)
    for way, answers in found.items():
        if way != base:
            pairs = zip(_values(answers, "tokens_per_s"), _values(found[base], "tokens_per_s"), strict=True)
            lost = _row(case, "throughput_lost_ratio", "1", [1 - mine / theirs for mine, theirs in pairs], system=way)
            yield replace(lost, aim=f"≤ {MOST_LOST}", met=lost.value <= MOST_LOST)


def _rounds(worker: OfflineWorker, base: Job, jobs: Mapping[str, Job], rounds: int, say: Say) -> Answers:
    found: Answers = {name: [] for name in jobs}
    for number in range(rounds):
        for name in turned(list(jobs), number):
            answer = worker.answer({**base, **jobs[name]})
            found[name].append(answer)
            say(f"round {number + 1}: {name:24} {answer['tokens_per_s']:8.1f} tok/s")
    return found


def _bytes_per_token(worker: OfflineWorker, base: Job) -> float:
    """Of the KV cache; a run of nothing much also warms the process up."""
    answer = worker.answer({**base, "max_running": 2, "max_model_len": 64, "requests": [{"prompt_ids": [10] * PREFIXES, "max_tokens": 4}]})
    return float(answer["kv_bytes_per_token"])


def _length(request: Mapping[str, object]) -> int:
    ids = request["prompt_ids"]
    assert isinstance(ids, list)
    return len(ids)


def _values(answers: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0) -> list[float]:
    return [answer[key] * factor for answer in answers if answer[key] is not None]


def _row(case: str, metric: str, unit: str, values: Sequence[float], *, system: str = "pagoda", least: float | None = None) -> Row:
    seen = spread(values)
    aim, met = (None, None) if least is None else (f"≥ {least}", seen.median >= least)
    return Row(case=case, system=system, metric=metric, value=seen.median, unit=unit, low=seen.low, high=seen.high, aim=aim, met=met)
