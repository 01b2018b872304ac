"""The tour: its pages against its result file and against the code they point at, and the whole run on the real tiny model in small."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from pagoda_bench.errors import ResultFormatError, SettingsError
from pagoda_bench.marked import replaced
from pagoda_bench.peers.cases import model_named
from pagoda_bench.results import FOLDER, Result, Row, read
from pagoda_bench.tour.measure import PEER, Answers, measure
from pagoda_bench.tour.pages import AIMS, BEGIN, END, PAGES, sections, shown
from pagoda_bench.tour.rows import rows, same_tokens
from pagoda_bench.tour.run import run
from pagoda_bench.tour.stages import BATCH, CONTEXT, STAGES, label
from pagoda_bench.tour.workload import OUTPUT_TOKENS, SHARED_TOKENS, Request, job, requests

ALL_PAGES = ["README.md", *(stage.page for stage in STAGES)]


@pytest.fixture(scope="module")
def result() -> Result:
    return read(FOLDER / "tour.json")


@pytest.mark.parametrize("name", ALL_PAGES)
def test_a_page_shows_the_figures_of_the_result_file(name: str, result: Result):
    page = (PAGES / name).read_text()
    assert replaced(page, BEGIN, END, sections(result)[name], f"tour/{name}") == page, "run `pagoda bench tour`"


@pytest.mark.parametrize("name", ALL_PAGES)
def test_every_link_of_a_page_leads_somewhere_and_every_name_is_in_the_code(name: str):
    page = (PAGES / name).read_text()
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)#]+)(?:#[^)]*)?\)", page):
        path = PAGES / target
        assert path.exists(), f"{name} links to {target}"
        if path.suffix == ".py" and text.startswith("`"):
            for part in text.strip("`").split("."):
                assert re.search(rf"\b(def |class |self\.){part}\b", path.read_text()), f"{name}: {target} has no {text}"


def test_every_picture_shows_its_stage_and_is_small(result: Result):
    measured = {row.case for row in result.rows}
    for stage in STAGES:
        if stage.slug not in measured:
            continue
        picture = (PAGES / "plots" / f"{stage.slug}.svg").read_text()
        assert len(picture) < 40_000
        assert label(stage.gain) in picture
        row = next(row for row in result.rows if row.case == stage.slug and row.metric == stage.gain)
        assert shown(row) in picture, f"{stage.slug}.svg was drawn from other figures"


def test_the_committed_run_wrote_the_same_tokens_in_every_stage(result: Result):
    same = {row.case: row.value for row in result.rows if row.metric == "same_tokens_ratio"}
    assert set(same.values()) == {1}
    assert list(same) == [stage.slug for stage in STAGES][: len(same)]


def test_a_stage_without_figures_says_why(result: Result):
    alone = replace(result, rows=tuple(row for row in result.rows if row.case < "09"))
    by_page = sections(alone)
    assert by_page["10-cuda-graphs.md"] == "needs a GPU."
    assert "| [CUDA graphs](10-cuda-graphs.md) | needs a GPU |" in by_page["README.md"]
    assert "| [Async scheduling](09-async-scheduling.md) | not measured yet |" in by_page["README.md"]


def test_the_bounds_that_the_tour_names_follow_from_the_workload():
    page = (PAGES / "README.md").read_text()
    alone, longest = sum(OUTPUT_TOKENS), max(OUTPUT_TOKENS)
    assert f"{alone} ÷ {longest} = {alone / longest:.2f} and no more" in page
    assert f"{longest} ÷ ({alone} ÷ {BATCH}) = {longest * BATCH / alone:.1f} over static" in page
    asked = requests(48)
    prompt, output = fmean(len(one.prompt_ids) for one in asked), fmean(one.output_tokens for one in asked)
    assert f"{prompt:.0f} tokens in the mean against {output:.0f} of output" in page


def test_each_stage_keeps_what_the_one_before_switched_on_and_changes_something():
    for before, stage in pairwise(STAGES[1:]):
        assert stage.engine != before.engine, stage.slug
        assert all(stage.engine[switch] is True for switch, on in before.engine.items() if on is True), stage.slug


def test_one_other_token_in_one_round_is_told():
    right, wrong = [[1, 2], [3]], [[1, 2], [4]]
    runs = Answers(STAGES[1], [{"token_ids": right}, {"token_ids": wrong}], [{"token_ids": right[:1]}])
    assert same_tokens(runs, right) == pytest.approx(4 / 5)


def test_every_batch_of_the_workload_has_one_long_answer_and_every_request_fits_the_context():
    asked = requests(48)
    for i in range(0, len(asked), BATCH):
        assert sorted(request.output_tokens for request in asked[i : i + BATCH]) == sorted(OUTPUT_TOKENS)
    assert len({tuple(request.prompt_ids[:SHARED_TOKENS]) for request in asked}) == 1
    assert max(len(request.prompt_ids) + request.output_tokens for request in asked) <= CONTEXT
    assert asked == requests(48)
    assert [line["at_s"] for line in job(asked[:3], interval_s=0.5)] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (Row(case="", system="", metric="ttft_p50_s", value=0.0123, unit="s"), "12.3 ms"),
        (Row(case="", system="", metric="ttft_p50_s", value=0.123, unit="s"), "123 ms"),
        (Row(case="", system="", metric="ttft_p50_s", value=12.3, unit="s", low=11.0, high=14.0), "12.30 s (11.00 s to 14.00 s)"),
        (Row(case="", system="", metric="kv_held_ratio", value=0.876, unit="1"), "88%"),
        (Row(case="", system="", metric="speedup_over_static", value=1.567, unit="ratio"), "1.57"),
        (Row(case="", system="", metric="steps", value=1234.0, unit="1"), "1,234"),
    ],
)
def test_a_figure_is_shown_with_its_unit(row: Row, text: str):
    assert shown(row, spread=True) == text


def test_a_page_that_lost_its_markers_is_named():
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nb", BEGIN, END, "new", "tour/x.md") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ResultFormatError, match=r"docs/tour/x\.md lacks the markers"):
        replaced("nothing", BEGIN, END, "new", "tour/x.md")


def test_a_number_of_requests_that_leaves_a_batch_short_is_refused():
    with pytest.raises(SettingsError, match="a multiple of 8"):
        run("builtin://tiny", count=20, rounds=1, device="cpu", output=Path("unused.json"), pages=None, command="")


def test_all_stages_and_transformers_run_on_the_real_tiny_model_and_write_the_same_tokens(tmp_path: Path):
    asked = [Request(request.prompt_ids[SHARED_TOKENS - 20 :], 2 + i) for i, request in enumerate(requests(BATCH))]
    measured = measure(model_named("tiny", scratch=tmp_path, cores=2), asked, rounds=1, device="cpu", scratch=tmp_path, say=print)
    found = {row.key: row for row in rows(measured)}
    here = [stage.slug for stage in STAGES if not stage.cuda_only]
    assert {slug: found[slug, "pagoda", "same_tokens_ratio"].value for slug in here} == dict.fromkeys(here, 1)
    assert not any(row.case == "10-cuda-graphs" for row in found.values()), "a CPU has no graphs"
    minimal, cached = (found[stage.slug, "pagoda", "computed_tokens"].value for stage in STAGES[:2])
    assert minimal > 2 * cached
    assert found["07-prefix-cache", "pagoda", "prefix_hit_tokens"].value == 16 * (BATCH - 1)
    assert found["03-static-batching", PEER, "output_tokens_per_s"].value > 0
    assert {row.metric for row in found.values() if row.aim} == {"same_tokens_ratio", *AIMS}
    assert [answers.at_once[0]["kv_capacity_tokens"] for answers in measured.stages[2:]] == [BATCH * CONTEXT] * 7
