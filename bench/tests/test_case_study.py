"""The case study's figures: those of the committed result files, and no line for what was not measured."""

import shutil
from pathlib import Path

import pytest

from pagoda_bench.case_study import BEGIN, DOCUMENT, END, with_figures
from pagoda_bench.errors import ResultFormatError
from pagoda_bench.results import FOLDER


def test_the_case_study_shows_the_figures_of_the_result_files():
    text = DOCUMENT.read_text()
    assert with_figures(text, FOLDER) == text, "run `python -m pagoda_bench.case_study`"


def test_what_was_not_measured_has_no_line(tmp_path: Path):
    shutil.copy(FOLDER / "tour.json", tmp_path)
    found = with_figures(f"{BEGIN}\n{END}", tmp_path)
    assert "[tour.json]" in found
    assert "peers" not in found
    assert "kv-use" not in found


def test_a_document_without_markers_is_refused(tmp_path: Path):
    with pytest.raises(ResultFormatError, match=r"docs/case-study\.md lacks the markers"):
        with_figures("nothing", tmp_path)
