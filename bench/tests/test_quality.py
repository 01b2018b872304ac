"""The quality harness: its arithmetic, what it reads, what it promises, and the real engine against itself and against a damaged copy."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pagoda_bench.errors import ResultFormatError, SettingsError
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.quality import lm_eval, table
from pagoda_bench.quality.__main__ import DOCUMENT
from pagoda_bench.quality.candidates import Candidate, parse, parse_all
from pagoda_bench.quality.corpus import own_corpus, read_corpus
from pagoda_bench.quality.drift import NotFinite, compare, summarize
from pagoda_bench.quality.engine import EngineRefused, ScoringEngine
from pagoda_bench.quality.figures import Limits, missed, rows, speed_rows
from pagoda_bench.quality.measure import SpeedPlan, Texts, quality, speed
from pagoda_bench.quality.questions import read_questions, tiny_questions
from pagoda_bench.quality.run import Options, run
from pagoda_bench.quality.shipped import FORMATS, write_calibration
from pagoda_bench.results import FOLDER, Row, read
from pagoda_bench.tiny.corpus import conversation, held_out_items
from pagoda_bench.tiny.items import is_held_out
from pagoda_bench.tiny.tokenizer import END_ID, render

TOKENIZER = Tokenizer.from_file(str(builtin_tiny() / "tokenizer.json"))


# ------------------------------------------------------------ arithmetic


def logarithms(*probabilities: Sequence[float]) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float64)).astype(np.float32)


distributions = st.lists(st.lists(st.floats(1e-3, 1.0), min_size=4, max_size=4), min_size=1, max_size=6).map(
    lambda rows: logarithms(*(np.array(row) / sum(row) for row in rows))
)


@given(distributions)
def test_a_model_does_not_drift_from_itself(same: Any):
    places = compare(same, same.copy(), np.zeros(len(same), np.int64))
    drift = summarize(places, np.arange(len(same)))
    assert (drift.kl_max, drift.top1_agreement, drift.perplexity_ratio, drift.ratio_low, drift.ratio_high) == (0.0, 1.0, 1.0, 1.0, 1.0)


@given(distributions, distributions)
def test_drift_is_never_negative(p: Any, q: Any):
    count = min(len(p), len(q))
    assert (compare(p[:count], q[:count], np.zeros(count, np.int64)).kl >= 0).all()


def test_figures_of_a_case_worked_by_hand():
    p, q = logarithms([0.5, 0.5], [0.9, 0.1]), logarithms([0.25, 0.75], [0.9, 0.1])
    places = compare(p, q, np.array([0, 1]))
    np.testing.assert_allclose(places.kl, [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0], atol=1e-6)
    assert places.same_top.tolist() == [False, True]
    drift = summarize(places, np.array([0, 0]))
    np.testing.assert_allclose(drift.perplexity, (1 / 0.25 / 0.1) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose([drift.perplexity_ratio, drift.ratio_low, drift.ratio_high], [2**0.5] * 3, rtol=1e-6)


def test_the_interval_is_over_documents_not_tokens():
    """One of four documents is twice as unlikely: resampled, it is in none or in several."""
    p, q = logarithms(*[[0.5, 0.5]] * 40), logarithms(*[[0.25, 0.75]] * 10, *[[0.5, 0.5]] * 30)
    drift = summarize(compare(p, q, np.zeros(40, np.int64)), np.repeat(np.arange(4), 10))
    assert drift.ratio_low == pytest.approx(1.0)
    assert drift.ratio_high == pytest.approx(2**0.75)


def test_what_the_reference_holds_impossible_adds_nothing():
    p, q = logarithms([1.0, 0.0]), logarithms([1.0, 0.0])
    assert compare(p, q, np.array([0])).kl.tolist() == [0.0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_distributions_that_are_no_numbers_are_told(broken: float):
    p, q = logarithms([0.5, 0.5]), logarithms([0.5, 0.5])
    q[0, 1] = broken
    with pytest.raises(NotFinite, match="its distributions are not finite near place 0"):
        compare(p, q, np.array([0]))


# ------------------------------------------------------------ what is typed and read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("builtin://tiny", Candidate("builtin://tiny", {}, "tiny")),
        ("./models/out/", Candidate("./models/out/", {}, "out")),
        ("m,quantization=int8", Candidate("m", {"quantization": "int8"}, "quantization=int8")),
        ("m,kvCache.dtype=fp8,kvCache.blockSize=32,label=KV", Candidate("m", {"kvCache": {"dtype": "fp8", "blockSize": 32}}, "KV")),
    ],
    ids=str,
)
def test_a_candidate_is_a_model_and_engine_settings(text: str, expected: Candidate):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [(["m,int8"], "'int8' is no setting"), (["m,=8"], "is no setting"), (["a/m", "b/m"], "two models would have this name")],
    ids=str,
)
def test_a_candidate_that_cannot_be_meant_is_refused(texts: list[str], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        parse_all(texts)


def test_text_is_cut_into_windows_and_bounded(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("Sort these numbers: 3, 1, 2. " * 200)
    corpus = read_corpus(path, TOKENIZER, tokens=100, window=32)
    assert [len(document.ids) for document in corpus.documents] == [32, 32, 32]
    assert corpus.judged().all()
    assert len(corpus.targets()) == len(corpus.owners()) == 3 * 31


def test_of_a_prompt_and_its_completion_only_the_completion_is_judged(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "What is 2 + 3?", "completion": "5"}) + "\n\n" + json.dumps({"text": "hello"}) + "\n")
    corpus = read_corpus(path, TOKENIZER, tokens=1000, window=64)
    first = corpus.documents[0]
    assert [token for token, judged in zip(first.ids, first.judged, strict=True) if judged] == TOKENIZER.encode("5").ids
    assert all(corpus.documents[1].judged)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "x y z"}\n{"txt": 1}', 'line 2: it must have "text"'),
        ("a.jsonl", "{", "line 1"),
        ("a.txt", "", "no token to predict"),
        ("a.txt", b"\xff\xfe", "cannot be read as text"),
    ],
    ids=str,
)
def test_a_corpus_that_cannot_be_read_is_named(name: str, content: str | bytes, sentence: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=sentence):
        read_corpus(path, TOKENIZER, tokens=100, window=32)


def test_the_models_own_corpus_is_held_out_and_judges_whole_answers():
    corpus = own_corpus(TOKENIZER, tokens=3000)
    assert 2500 < sum(len(document.ids) for document in corpus.documents) <= 3000
    for document in corpus.documents:
        turns = sum(1 for token, judged in zip(document.ids, document.judged, strict=True) if judged and token == END_ID)
        assert turns >= 5
    asked = {item.operands for question in ("addition", "sorting") for item in _items(question, 20, seed=0)}
    judged_elsewhere = {item.operands for question in ("addition", "sorting") for item in _items(question, 20, seed=7)}
    assert len(asked & judged_elsewhere) < 10


def _items(name: str, count: int, *, seed: int) -> list[Any]:
    from pagoda_bench.tiny.corpus import TASKS

    return held_out_items(next(task for task in TASKS if task.name == name), count, seed)


def test_calibration_holds_nothing_that_is_judged(tmp_path: Path):
    path = tmp_path / "calibration.jsonl"
    write_calibration(path)
    text = path.read_text()
    judged = [item for name in ("copy", "json") for item in _items(name, 50, seed=7)]
    assert all(is_held_out(item) for item in judged)
    assert not any(render(conversation([item])) in text for item in judged)


def test_questions_of_a_file_count_their_first_line(tmp_path: Path):
    path = tmp_path / "sums.jsonl"
    path.write_text('{"prompt": "2 + 3 =", "answer": "5"}\n{"prompt": "1 + 1 =", "answer": "2"}\n')
    (sums,) = read_questions(path, TOKENIZER, 10)
    assert (sums.name, len(sums.prompts)) == ("sums", 2)
    assert [sums.right(0, reply) for reply in (" 5\n1 + 1 = 2", "55", "")] == [True, False, False]


def test_data_for_other_harnesses_is_what_their_tasks_read(tmp_path: Path):
    assert lm_eval.main([str(tmp_path)]) == 0
    for task in sorted((FOLDER.parent / "lm-eval").glob("*.yaml")):
        said = yaml.safe_load(task.read_text())
        lines = [json.loads(line) for line in (tmp_path / said["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
        named = {said[key].strip("{}") for key in ("doc_to_text", "doc_to_target", "doc_to_choice") if key in said}
        assert all(set(line) == named for line in lines)
        assert all(line["prompt"].endswith("<|assistant|>") for line in lines)
        if "doc_to_choice" in said:
            assert all(len(set(line["choices"])) == lm_eval.CHOICES for line in lines)
            assert {line["answer"] for line in lines} == set(range(lm_eval.CHOICES))


# ------------------------------------------------------------ speed, limits, tables


class PacedEngine:
    """Answers with the speed of the model that is open."""

    def __init__(self, paces: dict[str, float]) -> None:
        self.paces, self.opened = paces, list[str]()

    def open(self, folder: Path, engine: Any, *, given_text: bool) -> None:
        if folder.name not in self.paces:
            raise EngineRefused("no such format")
        self.opened.append(folder.name)

    def answers(self, prompts: Any, max_tokens: int, *, ignore_eos: bool = False) -> dict[str, Any]:
        return {"tokens_per_s": self.paces[self.opened[-1]] * len(prompts)}


def test_speeds_are_taken_in_turns_and_compared_within_a_round():
    engine, said = PacedEngine({"a": 10.0, "b": 20.0}), list[str]()
    jobs: dict[str, tuple[Path, Any]] = {name: (Path(name), {}) for name in ("a", "b", "c")}
    speeds = speed(engine, jobs, SpeedPlan(streams=(1, 4), rounds=2), said.append)  # type: ignore[arg-type]
    assert engine.opened == ["a", "b", "b", "a"]
    assert speeds == {"a": {1: [10.0, 10.0], 4: [40.0, 40.0]}, "b": {1: [20.0, 20.0], 4: [80.0, 80.0]}}
    assert [line for line in said if "not measured" in line] == ["c's speed is not measured: no such format"]
    found = {row.key: row.value for row in speed_rows(speeds, name="m")}
    assert (found["m n=4", "b", "output_tokens_per_s"], found["m n=4", "b", "speedup"]) == (80.0, 2.0)


def result_rows() -> list[Row]:
    def row(system: str, case: str, metric: str, value: float, **rest: Any) -> Row:
        return Row(case=f"my model {case}", system=system, metric=metric, value=value, unit="1", **rest)

    found = []
    for system, ratio, met in (("bf16", 1.0, None), ("int8", 1.02, False)):
        for case in ("prefill", "decode"):
            found += [row(system, case, metric, 0.5) for metric in table.DRIFT if metric != "perplexity_ratio"]
            found.append(
                row(system, case, "perplexity_ratio", ratio, low=ratio, high=ratio, aim="≤ 1.005" if met is False else None, met=met)
            )
        found.append(row(system, "n=8", "output_tokens_per_s", 100 * ratio))
    return found


def test_a_missed_limit_shows_in_every_table():
    found = result_rows()
    assert [(row.system, row.case) for row in missed(found)] == [("int8", "my model prefill"), ("int8", "my model decode")]
    assert "| int8 |  |  |  |  | 0.5 (+2.00 %) | 0.5 | 0.5 | 50.00% | 102 |" in table.overview(found)
    assert sum("**no**" in line for line in table.gates(found)) == 2
    assert sum("missed" in line for line in table.drifts(found)) == 2


def test_the_document_shows_the_figures_of_its_result_file():
    path, text = FOLDER / "quality.json", DOCUMENT.read_text()
    assert text.count(table.BEGIN) == text.count(table.END) == 1
    if path.exists():
        assert table.with_tables(text, read(path)) == text, "run `make quality`"


def test_a_document_that_lost_its_markers_is_named():
    with pytest.raises(ResultFormatError, match=r"docs/quantization\.md lacks the markers"):
        table.with_tables("nothing", read(FOLDER / "profile.json"))


# ------------------------------------------------------------ the real engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringEngine]:
    with ScoringEngine(log=tmp_path_factory.mktemp("engine") / "log", device="cpu", threads=1) as engine:
        yield engine


def texts(*, tokens: int, per_task: int = 0) -> Texts:
    return Texts(TOKENIZER, own_corpus(TOKENIZER, tokens=tokens), tiny_questions(TOKENIZER, per_task), ("prefill", "decode"))


def test_every_format_keeps_its_limits_on_the_shipped_model(engine: ScoringEngine, tmp_path: Path):
    """A few thousand tokens of what `make quality` judges."""
    formats = [FORMATS[0], *(one for one in FORMATS if one.limits != Limits() and not one.quantize)]
    candidates, folders = [one.candidate() for one in formats], {formats[0].candidate().source: builtin_tiny()}
    measured = quality(engine, candidates, folders, texts(tokens=1500), tmp_path, print)
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
