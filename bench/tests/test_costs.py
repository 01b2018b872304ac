"""The costs benchmark: its workloads, its rows, its tables against the committed results, and one of its runs on the real tiny model."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pagoda_bench.costs import measure
from pagoda_bench.costs.documents import DOCS, DOCUMENTS, markers, with_table
from pagoda_bench.costs.jobs import (
    ADAPTER_CASES,
    INVARIANT,
    KV_DTYPES,
    PREFIX_TOKENS,
    PREFIXES,
    ROOM_PREFIXES,
    TIER_CONTEXT,
    TURNS,
    adapter_jobs,
    kv_use_jobs,
    tier_jobs,
    tier_requests,
)
from pagoda_bench.costs.loading import LOADED, NOTHING, loading_rows
from pagoda_bench.costs.measure import Place, adapter_rows, invariant_rows, kv_dtype_rows, kv_rows, tier_rows
from pagoda_bench.costs.ranks import RANKS, THREADS, ranks_rows
from pagoda_bench.costs.run import run
from pagoda_bench.errors import ResultFormatError, SettingsError
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.offline import OfflineWorker
from pagoda_bench.random_adapters import write_adapters
from pagoda_bench.results import FOLDER, read


@pytest.mark.parametrize("benchmark", [name for name in DOCUMENTS if (FOLDER / f"{name}.json").exists()])
def test_a_document_shows_the_figures_of_its_result_file(benchmark: str):
    path = FOLDER / f"{benchmark}.json"
    text = (DOCS / DOCUMENTS[benchmark]).read_text()
    assert with_table(text, read(path)) == text, f"run `pagoda bench costs {benchmark}`"


@pytest.mark.parametrize("benchmark", DOCUMENTS)
def test_every_benchmark_has_a_place_in_a_document(benchmark: str):
    text = (DOCS / DOCUMENTS[benchmark]).read_text()
    assert all(text.count(marker) == 1 for marker in markers(benchmark))


def test_a_document_that_lost_its_markers_is_named():
    result = read(FOLDER / "kv-use.json")
    begin, end = markers("kv-use")
    assert with_table(f"a\n{begin}\nold\n{end}\nb", result).endswith(f"{end}\nb")
    with pytest.raises(ResultFormatError, match=r"docs/bench\.md lacks the markers"):
        with_table("nothing", result)


def test_the_prefixes_exceed_the_device_and_fit_into_the_tier():
    per_token = 100.0
    jobs = tier_jobs(per_token, interval_s=0.5)
    device_tokens = jobs["with"]["kv_cache_bytes"] / per_token
    assert TIER_CONTEXT + ROOM_PREFIXES * PREFIX_TOKENS == device_tokens < PREFIXES * PREFIX_TOKENS
    assert jobs["with"]["host_tier_bytes"] / per_token >= PREFIXES * PREFIX_TOKENS
    assert jobs["without"] == {key: value for key, value in jobs["with"].items() if key != "host_tier_bytes"}
    prompts = [one["prompt_ids"][:PREFIX_TOKENS] for one in tier_requests()]  # type: ignore[index]
    assert len({tuple(prompt) for prompt in prompts}) == PREFIXES
    assert prompts[:PREFIXES] * TURNS == prompts
    assert len({tuple(one["prompt_ids"]) for one in tier_requests()}) == PREFIXES * TURNS  # type: ignore[arg-type]


def test_every_cache_gets_the_same_requests_and_memory():
    jobs = list(kv_use_jobs(2560.0).values())
    assert all(job["requests"] == jobs[0]["requests"] and job["kv_cache_bytes"] == jobs[0]["kv_cache_bytes"] for job in jobs)


def test_a_cache_half_used_misses_its_aim():
    answer = {"kv_written_of_held_at_load_ratio": 0.95, "kv_held_of_capacity_saturated_ratio": 0.5}
    answer |= {"sequences_per_step": 8.0, "preemptions": 0, "tokens_per_s": 100.0}
    found = {row.metric: row for row in kv_rows({"paged": [answer]})}
    assert (found["kv_written_of_held_ratio"].met, found["kv_held_of_capacity_ratio"].met) == (True, False)
    assert all(row.aim is None for row in kv_rows({"contiguous": [answer]}))


def test_hits_count_both_caches_and_the_gain_is_taken_within_a_round():
    def answer(device: int, host: int, ttft_ms: float) -> dict[str, Any]:
        hits = {"prefix_hit_tokens": device, "host_prefix_hit_tokens": host, "computed_tokens": 100 - device - host}
        return {**hits, "ttft_p50_ms": ttft_ms, "ttft_p95_ms": ttft_ms, "token_ids": [[1]]}

    found = {"without": [answer(10, 0, 20.0), answer(10, 0, 40.0)], "with": [answer(10, 70, 5.0), answer(10, 70, 10.0)]}
    rows = {(row.case, row.metric): row.value for row in tier_rows(found, prompt_tokens=100)}
    assert rows["with", "prefix_hit_ratio"] == pytest.approx(0.8)
    assert rows["with", "host_prefix_hit_ratio"] == pytest.approx(0.7)
    assert rows["with", "ttft_gain_over_without"] == 4
    assert rows["with", "same_tokens_ratio"] == 1


def test_what_invariance_costs_is_told_of_every_other_way_and_of_none_where_it_is_refused():
    def answers(*speeds: float) -> list[dict[str, Any]]:
        return [{"tokens_per_s": speed, "ttft_max_ms": 1.0, "decode_step_ms": 1.0} for speed in speeds]

    found = {"auto": answers(100, 200), "sdpa": answers(80, 160), INVARIANT: answers(40, 80)}
    lost = {row.system: row.value for row in invariant_rows("tiny", found) if row.metric == "throughput_lost_ratio"}
    assert lost == {"auto": pytest.approx(0.6), "sdpa": pytest.approx(0.5)}
    del found[INVARIANT]
    assert "throughput_lost_ratio" not in {row.metric for row in invariant_rows("tiny", found)}


def test_a_quantized_cache_is_held_against_the_plain_one_of_its_round():
    def answers(*steps: float) -> list[dict[str, Any]]:
        return [{"decode_step_s": step, "attention_s": step / 2, "kv_bytes_per_token": 10.0} for step in steps]

    found = {"auto": answers(4.0, 8.0), "int8": answers(2.0, 2.0)}
    rows = {(row.system, row.metric): row for row in kv_dtype_rows("tiny", found)}
    gain = rows["int8", "decode_step_gain_over_auto"]
    assert (gain.low, gain.high) == (2, 4)
    assert ("auto", "attention_gain_over_auto") not in rows


def test_forms_of_the_cache_take_turns_over_the_same_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs: list[dict[str, Any]] = []

    def profiled(job: dict[str, Any]) -> dict[str, Any]:
        jobs.append(job)
        return {"step_s": [1.0], "phases_s": {"attention": [0.5]}, "kv_bytes_per_token": 2.0}

    monkeypatch.setattr(measure, "decode_profile", profiled)
    place = Place(folder=builtin_tiny(), device="cpu", threads=1, scratch=tmp_path)
    rows = list(measure.quantized_kv({"tiny": place}, rounds=3, say=print))
    assert {row.system for row in rows} == set(KV_DTYPES)
    assert {tuple(job["kv_dtype"] for job in jobs[i : i + 3]) for i in (0, 3, 6)} != {KV_DTYPES}, "another begins each round"
    assert all({**job, "kv_dtype": ""} == {**jobs[0], "kv_dtype": ""} for job in jobs)


def test_ranks_are_held_against_every_other_way_within_a_round():
    def answers(*speeds: float) -> list[dict[str, Any]]:
        return [{"tokens_per_s": speed, "ttft_max_ms": 1.0, "decode_step_ms": 1.0} for speed in speeds]

    found = {"1 process, 1 thread": answers(50, 50), THREADS: answers(100, 50), RANKS: answers(80, 50)}
    ratios = {row.system: (row.low, row.high) for row in ranks_rows("c=1", found) if row.metric == "speed_of_ranks_ratio"}
    assert ratios == {"1 process, 1 thread": (1.0, 1.6), THREADS: (0.8, 1.0)}


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(
        SettingsError, match="tour: write kv-use, host-tier, batch-invariance, quantized-kv, adapters, adapter-loading, tensor-parallel"
    ):
        run(["tour"], rounds=1, output=None, command="")


def test_the_tier_finds_evicted_prefixes_on_the_real_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pagoda_bench.costs.jobs.TURNS", 2)
    place = Place(folder=builtin_tiny(), device="cpu", threads=1, scratch=tmp_path)
    rows = {(row.case, row.metric): row.value for row in measure.host_tier(place, rounds=1, say=print)}
    assert rows["without", "prefix_hit_ratio"] == 0
    assert rows["with", "host_prefix_hit_ratio"] > 0.3
    assert rows["with", "same_tokens_ratio"] == 1


def test_adapters_are_asked_for_in_turn_and_measured_against_the_same_requests_of_the_base_model():
    case, folders = ADAPTER_CASES[0], {f"a{i}": f"/a{i}" for i in range(10)}
    jobs = adapter_jobs(case, folders)
    names = {way: job.pop("adapter_names") for way, job in jobs.items()}
    assert set(names["base model"]) == {""}
    assert set(names["one adapter"]) == {"a0"}
    assert set(names["10 adapters"]) == set(folders)
    assert all(job == jobs["base model"] for job in jobs.values())
    assert {len(each) for each in names.values()} == {case.streams}


def test_what_adapters_cost_is_taken_within_a_round_and_has_an_aim():
    def answers(*speeds: float) -> list[dict[str, Any]]:
        return [{"tokens_per_s": speed, "decode_step_ms": 1.0} for speed in speeds]

    found = {"base model": answers(100.0, 200.0), "one adapter": answers(95.0, 190.0), "10 adapters": answers(80.0, 160.0)}
    lost = {row.system: row for row in adapter_rows("tiny", found) if row.metric == "throughput_lost_ratio"}
    assert {way: (round(row.value, 3), row.met) for way, row in lost.items()} == {"one adapter": (0.05, True), "10 adapters": (0.2, False)}


def test_pauses_are_told_by_what_was_done_meanwhile():
    pauses = {NOTHING: [[0.1] * 99 + [0.5]], LOADED: [[0.3, 0.1, 0.2]]}
    rows = {(row.system, row.metric): row.value for row in loading_rows("c=8", pauses, {LOADED: [0.25]})}
    assert (rows[NOTHING, "itl_p50_s"], rows[NOTHING, "itl_p99_s"], rows[NOTHING, "itl_max_s"]) == (0.1, 0.5, 0.5)
    assert (rows[LOADED, "itl_p50_s"], rows[LOADED, "each_took_s"]) == (0.2, 0.25)
    assert (NOTHING, "each_took_s") not in rows


def test_the_random_adapters_run_on_the_real_engine(tmp_path: Path):
    place = Place(folder=builtin_tiny(), device="cpu", threads=1, scratch=tmp_path)
    folders = write_adapters(place.folder, tmp_path, count=2, rank=2, targets=("q_proj", "down_proj"))
    asked = {"random": {"count": 3, "prompt_tokens": 8, "vocab": 500}, "max_tokens": 4, "ignore_eos": True}
    with closing(OfflineWorker(log=tmp_path / "log")) as worker:
        told = {name: str(folder) for name, folder in folders.items()}
        answer = worker.answer({**place.base("bf16"), **asked, "adapters": told, "adapter_names": ["", *folders]})
    assert answer["tokens"] == 12
