"""The whole generator against the mock server in its own process, held to the mock's own stamps: a busy machine cannot make these fail."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pagoda_bench import results
from pagoda_bench.command import app
from pagoda_bench.errors import ServerUnusable
from pagoda_bench.load.files import write_all
from pagoda_bench.load.measure import counted
from pagoda_bench.load.run import Measured, run
from pagoda_bench.load.scenarios import Lengths, Scenario
from pagoda_bench.load.selfcheck import errors, mock_server, peak_streams, read_truth
from pagoda_bench.load.settings import Level, RunSettings
from pagoda_bench.load.slo import Slo

TTFT_S, ITL_S = 0.06, 0.02


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with mock_server("--ttft-ms", str(TTFT_S * 1e3), "--itl-ms", str(ITL_S * 1e3)) as address:
        yield address


@pytest.fixture(scope="module")
def measured(url: str) -> Measured:
    levels = (Level("closed", 12), Level("poisson", 30))
    return run(
        RunSettings(
            url=url, levels=levels, requests_per_user=3, duration_s=0.8, lengths=Lengths(16, 8), slo=Slo(ttft=60.0), endpoint="chat"
        )
    )


def test_measured_times_are_the_mocks_own(url: str, measured: Measured) -> None:
    """A busy machine delays some requests, but not all of them, and nothing that it does makes a chunk arrive before it was sent. What the
    generator itself did wrong would be in every request, so the least disturbed one shows it."""
    truth = read_truth(url)
    for level in measured.levels:
        records = counted(level.runs[0])
        # the role that opens the stream left long before the first token: taking it for one would make this negative
        assert min(errors(records, truth).delivery_s) >= 0
        ttft_off_s, itl_off_s = [], []
        for record in records:
            received, *sent = truth[record.name]
            ttft_off_s.append(record.arrivals[0] - record.sent_s - (sent[0] - received))
            itl_off_s += [abs(gap - (after - before)) for gap, (before, after) in zip(record.gaps_s, pairwise(sent), strict=True)]
        assert 0 <= min(ttft_off_s) <= max(0.001, 0.02 * TTFT_S)
        assert min(itl_off_s) <= max(0.001, 0.02 * ITL_S)


def test_a_users_next_request_reaches_the_server_after_the_last_answer_reached_the_user(url: str, measured: Measured) -> None:
    """Stamps of both sides in the order of cause and effect: sent, received, answered, arrived, next one received."""
    truth = read_truth(url)
    by_name = {record.name: record for record in measured.levels[0].runs[0].records}
    followed = 0
    for name, record in by_name.items():
        received, *sent = truth[name]
        assert record.due_s <= record.sent_s <= received <= sent[0] <= record.arrivals[0] <= record.last_s
        user, _, number = name.rpartition("-")
        if (after := by_name.get(f"{user}-{int(number) + 1}")) is not None:
            followed += 1
            assert record.last_s <= record.ended_s <= after.due_s <= truth[after.name][0]
    assert followed >= 12


def test_every_chunk_is_counted_and_every_request_has_its_length(measured: Measured) -> None:
    for level in measured.levels:
        figures = level.figures
        assert figures is not None
        assert figures.errors == {}
        assert level.lateness.samples > 10
        assert figures.counting.one_token_a_chunk
        assert figures.counting.output_mismatches == 0
        assert figures.good_ratio == 1.0
    assert peak_streams(measured.levels[0]) == 12


def test_an_open_loop_does_not_wait_for_answers(url: str) -> None:
    """At 200 a second and 0.2 s an answer, a client that waited for answers would never have twenty open at once."""
    level = run(RunSettings(url=url, levels=(Level("poisson", 200),), duration_s=0.5, lengths=Lengths(4, 8))).levels[0]
    assert peak_streams(level) >= 20
    assert all(record.sent_s >= record.due_s for record in level.runs[0].records)


def test_everything_is_written_and_reads_back(measured: Measured, tmp_path: Path) -> None:
    # a picture needs two levels of a kind
    again = replace(measured.levels[0], level=Level("closed", 24), case="short c=24")
    measured = replace(measured, levels=[*measured.levels, again])
    paths = write_all(measured, tmp_path / "load", command="pagoda bench run …", notes=["a note"])
    assert sorted(path.name for path in paths) == [
        *("load-closed-latency.png", "load-closed-throughput.png", "load.csv", "load.json", "load.md"),
    ]
    result = results.read(tmp_path / "load.json")
    assert {row.case for row in result.rows} == {"short c=12", "short c=24", "short rate=30"}
    assert {"output_tokens_per_s", "ttft_p95_s", "itl_p99_s", "goodput_requests_per_s", "errors"} <= {row.metric for row in result.rows}
    with (tmp_path / "load.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(level.runs[0].records) for level in measured.levels)
    text = (tmp_path / "load.md").read_text()
    assert "Every chunk carried one token here" in text
    assert "**TTFT** = first chunk with text − due" in text


def test_agents_take_their_turns_one_after_another(url: str) -> None:
    settings = RunSettings(
        url=url,
        levels=(Level("closed", 2),),
        scenario=Scenario.AGENTS,
        lengths=Lengths(output_tokens=2),
        requests_per_user=1,
        warm_up=False,
    )
    records = run(settings).levels[0].runs[0].records
    assert len(records) >= 6
    by_name = {record.name: record for record in records}
    for record in records:
        head, _, turn = record.name.rpartition(".")
        if turn != "0":
            before = by_name[f"{head}.{int(turn) - 1}"]
            assert record.due_s >= before.ended_s
            assert (record.prompt_tokens or 0) > (before.prompt_tokens or 0)


def test_what_begins_during_the_ramp_counts_for_nothing(url: str) -> None:
    settings = RunSettings(url=url, levels=(Level("closed", 4),), ramp_s=0.3, requests_per_user=3, warm_up=False, lengths=Lengths(4, 2))
    run_ = run(settings).levels[0].runs[0]
    begun = sorted(record.due_s for record in run_.records)
    assert begun[0] < begun[0] + 0.2 < run_.window.start_s
    assert 0 < len(counted(run_)) < len(run_.records)
    assert all(record.due_s >= begun[0] + 0.29 for record in counted(run_))


def test_a_trace_is_replayed_with_its_lengths(url: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("at_s,prompt_tokens,output_tokens\n0,5,2\n0.1,6,3\n0.2,7,4\n")
    settings = RunSettings(url=url, levels=(Level("trace", 2.0),), trace=tmp_path / "t.csv", warm_up=False)
    records = sorted(run(settings).levels[0].runs[0].records, key=lambda record: record.due_s)
    assert [(record.prompt_tokens, record.output_tokens) for record in records] == [(5, 2), (6, 3), (7, 4)]
    assert [round(record.due_s - records[0].due_s, 3) for record in records] == [0.0, 0.05, 0.1]


def test_several_tokens_a_chunk_are_told_and_counted_by_usage() -> None:
    with mock_server("--ttft-ms", "5", "--itl-ms", "5", "--tokens-per-chunk", "4") as address:
        level = run(RunSettings(url=address, levels=(Level("closed", 2),), requests_per_user=2, lengths=Lengths(4, 16))).levels[0]
    assert level.figures is not None
    assert level.figures.counting.tokens_per_chunk == 4.0
    assert all(record.tokens == 16 and len(record.arrivals) == 4 for record in level.runs[0].records)


def test_a_server_that_refuses_extras_is_asked_plainly_and_the_result_says_so() -> None:
    refused = ("ignore_eos", "skip_special_tokens")
    with mock_server("--ttft-ms", "1", "--itl-ms", "1", *(f"--refuse={field}" for field in refused)) as address:
        found = run(RunSettings(url=address, levels=(Level("closed", 1),), requests_per_user=1, lengths=Lengths(4, 2)))
    assert not found.dialect.forced_length
    assert found.dialect.token_ids
    assert any("ignore_eos and min_tokens are refused" in note and "unknown field" in note for note in found.notes)


def test_a_server_that_cannot_be_measured_is_told_in_one_line(url: str) -> None:
    with pytest.raises(ServerUnusable, match="cannot be used: connect"):
        run(RunSettings(url="http://127.0.0.1:9", levels=(Level("closed", 1),)))
    with pytest.raises(ServerUnusable, match="the server has mock, not gpt"):
        run(RunSettings(url=url, model="gpt", levels=(Level("closed", 1),)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run"], "say how to load it"),
        (["run", "--concurrency", "1.5"], "write whole numbers above 0"),
        (["run", "--rate", "2", "--slo", "ttft=fast"], "'fast' is no duration"),
        (["run", "--rate", "2", "--url", "ftp://x"], "is no address of a server"),
        (["compare", "no.json", "no.json"], "cannot be read"),
        (["engine", "nowhere"], "is no model"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_fix(arguments: list[str], sentence: str) -> None:
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("pagoda bench: ")
    assert sentence in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, pagoda_bench.command; print([m for m in ('torch', 'numpy', 'matplotlib', 'uvloop') if m in sys.modules])"
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == []
