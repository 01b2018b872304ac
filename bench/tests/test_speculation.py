"""The speculation benchmark: its work, its rows, its table against the committed result, and a small run on the shipped pair."""

from pathlib import Path
from typing import Any

import pytest

from pagoda_bench.errors import ResultFormatError, SettingsError
from pagoda_bench.results import FOLDER, read
from pagoda_bench.speculation.__main__ import main
from pagoda_bench.speculation.document import DOCUMENT, RESULTS, markers, with_table
from pagoda_bench.speculation.measure import OtherTokens, check_same, rows_of
from pagoda_bench.speculation.pairs import forget_larger
from pagoda_bench.speculation.work import COPY, DRAFT_TOKENS, MIX, SYSTEMS, Case, cases, prompts_of
from pagoda_bench.tiny import tokenizer as tok
from pagoda_bench.tiny.corpus import TASKS
from pagoda_bench.tiny.models import FOLDERS


def answer(tokens_per_s: float) -> dict[str, Any]:
    return {
        "tokens_per_s": tokens_per_s,
        "tokens": 100,
        "steps": 40,
        "drafts": 20,
        "accepted_draft_tokens": [18, 12, 6, 0, 0, 0],
        "token_ids": [[1, 2]],
    }


@pytest.mark.parametrize("benchmark", RESULTS)
def test_the_document_shows_the_figures_of_its_result_file(benchmark: str):
    text = DOCUMENT.read_text()
    assert [text.count(marker) for marker in markers(benchmark)] == [1, 1]
    if (path := FOLDER / f"{benchmark}.json").exists():
        assert with_table(text, read(path)) == text, f"run `make bench-{benchmark}`"


def test_a_document_that_lost_its_markers_is_named():
    with pytest.raises(ResultFormatError, match=r"docs/speculation\.md lacks the markers"):
        with_table("nothing", read(FOLDER / "kv-use.json"))


def test_no_prompt_comes_twice_in_all_rounds():
    tokenizer = tok.load_tokenizer(FOLDERS["target"])
    asked = [tuple(prompt) for number in range(3) for prompt in prompts_of(Case(COPY, 1, 20), tokenizer, number=number)]
    assert len(set(asked)) == len(asked) == 60


def test_the_mix_has_every_task_and_the_named_cases_are_there():
    names = [case.name for case in cases(scale=1)]
    assert {"c=1", "c=8", "c=32", "c=64", *(f"c=1 {task.name}" for task in TASKS)} == set(names)


def test_a_pair_is_named_by_both_of_its_models_or_by_the_flag_alone():
    with pytest.raises(SettingsError, match="--target and --draft belong together"):
        main(["--target", "somewhere"])
    with pytest.raises(SettingsError, match="--large names a pair already"):
        main(["--large", "--target", "somewhere", "--draft", "elsewhere"])
    with pytest.raises(SettingsError, match="give --large too"):
        main(["--retrain"])


def test_of_a_larger_target_that_is_trained_anew_nothing_old_is_left(tmp_path: Path):
    for name in ("large", "large-int8", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"old")
    for name in ("large.pt", "target.pt", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"old")
    forget_larger(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"target", "target.pt", "tokenizer.json"}
    forget_larger(tmp_path)


def test_gains_are_taken_within_a_round_and_held_against_their_aims():
    found = {
        Case(MIX, 64, 4): {system: [answer(100.0), answer(50.0)] for system in SYSTEMS},
        Case(COPY, 1, 4): {"none": [answer(100.0)], "ngram": [answer(160.0)], "suffix": [answer(100.0)], "draft": [answer(120.0)]},
    }
    rows = {row.key: row for row in rows_of(found)}
    assert (rows["c=64", "ngram", "gain"].value, rows["c=64", "ngram", "gain"].met) == (1.0, True)
    assert (rows["c=1 copy", "ngram", "gain"].value, rows["c=1 copy", "ngram", "gain"].met) == (1.6, True)
    assert (rows["c=1 copy", "draft", "gain"].aim, rows["c=1 copy", "draft", "gain"].met) == (">= 1.7", False)
    assert rows["c=1 copy", "draft", "accepted_at_2_ratio"].value == 0.6
    assert ("c=1 copy", "draft", f"accepted_at_{DRAFT_TOKENS}_ratio") in rows


def test_an_answer_that_changed_stops_the_benchmark():
    answers = {system: answer(1.0) for system in SYSTEMS}
    check_same(Case(MIX, 1, 1), answers, device="cpu")
    with pytest.raises(OtherTokens, match="c=1: draft gave other tokens than none"):
        check_same(Case(MIX, 1, 1), {**answers, "draft": {**answer(1.0), "token_ids": [[1, 3]]}}, device="cpu")


def test_a_small_run_on_the_shipped_pair_guesses_and_changes_nothing(tmp_path: Path):
    path = tmp_path / "speculation.json"
    assert main(["--quick", "--rounds", "1", "--case", "c=1 copy", "--output", str(path)]) == 0
    rows = {(row.system, row.metric): row.value for row in read(path).rows}
    assert rows["ngram", "tokens_per_step"] > 1.2
    assert rows["ngram", "accepted_at_1_ratio"] > 0.5
