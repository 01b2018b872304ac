"""Who reads the folders of `pagoda quantize`: the arithmetic, the document, and a real folder in our engine and in transformers."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pagoda_bench.checkpoints.document import DOCUMENT, with_tables
from pagoda_bench.checkpoints.elsewhere import Elsewhere, NotRead, Program
from pagoda_bench.checkpoints.figures import OURS, Agreement, agreement, loads_row
from pagoda_bench.checkpoints.formats import FORMATS, PLAIN, Format, chosen
from pagoda_bench.checkpoints.measure import Comparison, tiny_texts
from pagoda_bench.errors import ResultFormatError, SettingsError
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.quality.engine import ScoringEngine
from pagoda_bench.results import FOLDER, read

ids = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=4)
TRANSFORMERS = Program(name="transformers", python=Path(sys.executable), module="by_transformers")


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([[1, 2, 3], [4]], [[1, 2, 3], [4]], Agreement(1.0, 1.0)),
        ([[1, 2, 3], [4]], [[1, 9, 3], [4]], Agreement(0.5, 0.5)),  # after the first that differs nothing counts
        ([[1, 2]], [[1, 2, 3]], Agreement(0.0, 1.0)),  # theirs goes on
        ([[1, 2]], [[]], Agreement(0.0, 0.0)),
    ],
    ids=str,
)
def test_answers_agree_up_to_the_first_token_that_differs(ours: list[list[int]], theirs: list[list[int]], expected: Agreement):
    assert agreement(ours, theirs) == expected


@given(ids)
def test_answers_agree_with_themselves(same: list[list[int]]):
    assert agreement(same, same) == Agreement(1.0, 1.0)


def test_the_plain_model_is_always_compared_and_an_unknown_folder_is_refused():
    assert [one.label for one in chosen(["fp8 rtn"])] == [PLAIN, "fp8 rtn"]
    assert chosen([]) == list(FORMATS)
    with pytest.raises(SettingsError, match="no format int3; there are bf16; int8 rtn"):
        chosen(["int3"])


def test_the_document_has_the_tables_of_the_result_file():
    result = read(FOLDER / "checkpoints.json")
    assert with_tables(DOCUMENT.read_text(), result) == DOCUMENT.read_text()
    assert [case for case, system in dict.fromkeys((row.case, row.system) for row in result.rows) if system == OURS] == [
        one.label for one in FORMATS
    ]


def test_a_folder_that_does_not_load_says_so_in_the_table():
    result = read(FOLDER / "checkpoints.json")
    program = next(row.system for row in result.rows if row.system != OURS)
    case = FORMATS[1].label
    others = [row for row in result.rows if (row.case, row.system) != (case, program)]
    refused = replace(result, rows=(*others, loads_row(case, program, loads=False)))
    silent = replace(result, rows=(*others, loads_row(case, program, loads=True)))
    assert f"| {case} | **does not load** |" in with_tables(DOCUMENT.read_text(), refused)
    assert f"| {case} | loads, **does not answer** |" in with_tables(DOCUMENT.read_text(), silent)


def test_a_document_without_markers_is_refused():
    with pytest.raises(ResultFormatError, match=r"docs/checkpoints\.md lacks the markers <!-- checkpoints, cost"):
        with_tables("nothing", read(FOLDER / "checkpoints.json"))


def test_a_real_folder_is_read_by_transformers_as_by_our_engine(tmp_path: Path):
    tokenizer = Tokenizer.from_file(str(builtin_tiny() / "tokenizer.json"))
    texts = tiny_texts(tokenizer, tokens=300, per_task=1, documents_elsewhere=1, prompts_elsewhere=1)
    said: list[str] = []
    with ScoringEngine(log=tmp_path / "engine.log", device="cpu", threads=1) as engine:
        comparison = Comparison(engine, [TRANSFORMERS], texts, threads=1, scratch=tmp_path, say=said.append)
        formats = [FORMATS[0], Format("int8 rtn", "--to int8 --method rtn --samples 2 --length 64")]
        rows = {row.key: row.value for row in comparison.rows(formats)}
    assert comparison.told == {}
    assert len(said) == 4
    assert 0 < rows["int8 rtn", OURS, "output_error_ratio"] < 0.001
    for case, most in ((PLAIN, 0.002), ("int8 rtn", 0.01)):
        assert rows[case, "transformers", "loads"] == 1
        assert rows[case, "transformers", "same_tokens_ratio"] > 0.9
        assert 0 < rows[case, "transformers", "kl_mean_nats"] < most


def test_a_program_that_refuses_a_folder_is_quoted(tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(builtin_tiny() / "config.json", broken)
    with pytest.raises(NotRead, match=r"ended with exit status 1: OSError: .*model\.safetensors"):
        Elsewhere(TRANSFORMERS, broken, threads=1, log=tmp_path / "log")
