"""The quality harness on the real engine: every format's limits, the same model twice, a damaged one, and the files of a run."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.quality.candidates import Candidate, parse
from pagoda_bench.quality.corpus import own_corpus
from pagoda_bench.quality.engine import ScoringEngine
from pagoda_bench.quality.figures import Limits, missed, rows
from pagoda_bench.quality.measure import SpeedPlan, Texts, quality
from pagoda_bench.quality.questions import tiny_questions
from pagoda_bench.quality.run import Options, run
from pagoda_bench.quality.shipped import FORMATS
from pagoda_bench.results import read

TOKENIZER = Tokenizer.from_file(str(builtin_tiny() / "tokenizer.json"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringEngine]:
    with ScoringEngine(log=tmp_path_factory.mktemp("engine") / "log", device="cpu", threads=1) as engine:
        yield engine


def texts(*, tokens: int, per_task: int = 0) -> Texts:
    return Texts(TOKENIZER, own_corpus(TOKENIZER, tokens=tokens), tiny_questions(TOKENIZER, per_task), ("prefill", "decode"))


@pytest.mark.timeout(300)  # six engines, each loaded anew
def test_every_format_keeps_its_limits_on_the_shipped_model(engine: ScoringEngine, tmp_path: Path):
    """A thousand tokens of what `make quality` judges."""
    formats = [FORMATS[0], *(one for one in FORMATS if one.limits != Limits() and not one.quantize and "," not in one.label)]
    candidates, folders = [one.candidate() for one in formats], {formats[0].candidate().source: builtin_tiny()}
    measured = quality(engine, candidates, folders, texts(tokens=900), tmp_path, print)
    found = rows(measured, {one.label: one.limits for one in formats}, name="tiny")
    assert [one.candidate.label for one in measured] == [one.label for one in formats]
    assert not missed(found)


def test_the_same_model_twice_is_the_same_and_a_damaged_one_is_told(engine: ScoringEngine, tmp_path: Path):
    damaged = tmp_path / "damaged"
    shutil.copytree(builtin_tiny(), damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["model.layers.4.self_attn.o_proj.weight"].zero_()
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    candidates = [Candidate("good", {}, "first"), Candidate("good", {}, "again"), Candidate("damaged", {}, "damaged")]
    folders = {"good": builtin_tiny(), "damaged": damaged}
    first, again, other = quality(engine, candidates, folders, texts(tokens=1200, per_task=2), tmp_path, print)
    assert again.drifts == first.drifts
    assert all(drift.kl_max == 0 and drift.top1_agreement == 1 for drift in again.drifts.values())
    assert again.exact == first.exact
    assert all(drift.perplexity_ratio > 1.05 and drift.kl_mean > 0.01 for drift in other.drifts.values())
    limits = {label: Limits(perplexity_ratio=1.05, exact_match_lost=3.0) for label in ("again", "damaged")}
    failed = missed(rows([first, again, other], limits, name="tiny"))
    assert {(row.system, row.metric) for row in failed} == {("damaged", "perplexity_ratio"), ("damaged", "exact_match_lost_points")}
    assert (again.facts.linear_bytes, again.facts.kv_bytes_per_token) == (first.facts.linear_bytes, first.facts.kv_bytes_per_token)


def test_a_run_writes_its_files_and_says_what_could_not_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    candidates = [parse("builtin://tiny,label=bf16"), parse("builtin://tiny,dtype=int3,label=odd"), parse("builtin://tiny,dtype=fp32")]
    options = Options(tokens=600, per_task=1, paths=("prefill",), device="cpu", threads=1)
    options = replace(options, speed=SpeedPlan(streams=(1,), prompt_tokens=4, output_tokens=2, rounds=1))
    failed = run(candidates, options, output=tmp_path / "mine", command="pagoda bench quality", plots=True)
    assert [line.split(":")[0] for line in failed] == ["odd is not measured", "odd's speed is not measured"]
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine.md", "mine.csv", "mine.png"}
    result = read(tmp_path / "mine.json")
    assert {row.system for row in result.rows} == {"bf16", "dtype=fp32"}
    assert "| bf16 |" in capsys.readouterr().out
