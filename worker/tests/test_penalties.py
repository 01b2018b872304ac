"""Counts that move on by a token at a time, against counting everything anew, whatever happens to rows in between."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pagoda_worker.request import Sampling
from pagoda_worker.sampling.penalties import Penalties
from pagoda_worker.sampling.row_tables import History

VOCAB, ROWS, COLUMNS = 7, 4, 40
SETTINGS = [
    Sampling(),
    Sampling(frequency_penalty=0.5),
    Sampling(presence_penalty=1.5),
    Sampling(frequency_penalty=-0.25, presence_penalty=0.75, repetition_penalty=1.5),
]
token = st.integers(0, VOCAB - 1)


class Bench:
    """Rows as the runner keeps them: a table of tokens, and where each output begins."""

    def __init__(self) -> None:
        self.penalties = Penalties(max_running=ROWS, vocab_size=VOCAB, device=torch.device("cpu"))
        self.tokens = np.zeros((ROWS, COLUMNS), np.int32)
        self.history = History(torch.from_numpy(self.tokens), np.zeros(ROWS, np.int64))
        self.lines: dict[int, tuple[Sampling, list[int], int]] = {}
        """Row → (settings, tokens, output start)."""

    def open(self, row: int, sampling: Sampling, line: list[int], output_start: int) -> None:
        self.lines[row] = sampling, list(line), output_start
        self.tokens[row, : len(line)] = line
        self.history.output_start[row] = output_start
        self.penalties.open(row, sampling)

    def append(self, row: int, new: int) -> None:
        line = self.lines[row][1]
        self.tokens[row, len(line)] = new
        line.append(new)

    def apply(self, rows: list[int], logits: Tensor) -> Tensor:
        return self.penalties.apply(logits, np.array(rows), np.array([len(self.lines[row][1]) for row in rows]), self.history)

    def expected(self, rows: list[int], logits: Tensor) -> list[list[float]]:
        return [recounted(*self.lines[row], line) for row, line in zip(rows, logits.tolist(), strict=True)]


def recounted(sampling: Sampling, tokens: list[int], output_start: int, logits: list[float]) -> list[float]:
    said = Counter(tokens[output_start:])
    for each in set(tokens):
        logits[each] = logits[each] / sampling.repetition_penalty if logits[each] > 0 else logits[each] * sampling.repetition_penalty
    for each, count in said.items():
        logits[each] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return logits


opening = st.tuples(
    st.just("open"),
    st.integers(0, ROWS - 1),
    st.sampled_from(SETTINGS),
    st.lists(token, min_size=1, max_size=6),
    st.lists(token, max_size=4),
)
"""A row, its settings, its prompt, and what its output has already: of a resume, or of a preempted sequence that is back."""
stepping = st.tuples(
    st.just("step"), st.sets(st.integers(0, ROWS - 1), min_size=1), st.lists(token, min_size=ROWS, max_size=ROWS), st.booleans()
)
"""Rows that sample, what they sample, and whether the step is tried again before anything is known."""


@given(st.lists(st.one_of(opening, stepping), max_size=25))
def test_whoever_owns_a_row_and_whenever_it_samples_the_penalties_are_those_of_its_tokens(events: list[tuple]):  # type: ignore[type-arg]
    bench = Bench()
    logits = torch.linspace(-2, 2, ROWS * VOCAB).reshape(ROWS, VOCAB)
    for kind, *event in events:
        if kind == "open":
            row, sampling, prompt, output = event
            bench.open(row, sampling, [*prompt, *output], len(prompt))
            continue
        sampling_rows, new, again = event
        rows = [row for row in sorted(sampling_rows) if row in bench.lines and len(bench.lines[row][1]) < COLUMNS]
        asked = [row for row in rows if bench.penalties.asked[row]]
        for _ in range(1 + again if asked else 0):
            adjusted = bench.apply(asked, logits[asked].clone())
            torch.testing.assert_close(adjusted, torch.tensor(bench.expected(asked, logits[asked])))
        for row in rows:
            bench.append(row, new[row])


def test_a_step_that_is_cut_off_while_it_counts_is_counted_anew(monkeypatch: pytest.MonkeyPatch):
    bench = Bench()
    logits = torch.zeros(1, VOCAB)
    bench.open(0, SETTINGS[1], [1], 1)
    bench.apply([0], logits)
    bench.append(0, 3)
    add = Penalties._add_newest

    def add_and_fail(*args: object) -> None:
        add(*args)  # type: ignore[arg-type]
        raise RuntimeError("not enough memory")

    with monkeypatch.context() as failing:
        failing.setattr(Penalties, "_add_newest", add_and_fail)
        with pytest.raises(RuntimeError):
            bench.apply([0], logits)
    assert bench.apply([0], logits).tolist() == [[0, 0, 0, -0.5, 0, 0, 0]]


def test_rows_without_a_penalty_hold_no_counts_and_a_slot_goes_to_the_next_who_asks():
    bench = Bench()
    for row in range(ROWS):
        bench.open(row, Sampling(), [1], 1)
    assert len(bench.penalties._counts) == 0
    for row in [*range(ROWS), *range(ROWS)]:
        bench.open(row, SETTINGS[1], [1, 2], 1)
        bench.apply([row], torch.zeros(1, VOCAB))
        bench.open(row, Sampling(), [1], 1)
    assert len(bench.penalties._counts) == 1


def test_a_steady_step_reads_no_more_than_the_newest_token(monkeypatch: pytest.MonkeyPatch):
    bench = Bench()
    for row in range(ROWS):
        bench.open(row, SETTINGS[3], [row, 1, 2], 2)
    rows, logits = list(range(ROWS)), torch.zeros(ROWS, VOCAB)
    bench.apply(rows, logits)
    monkeypatch.setattr(Penalties, "_recount", lambda *args: pytest.fail("counted anew"))
    for step in range(5):
        for row in rows:
            bench.append(row, (row + step) % VOCAB)
        torch.testing.assert_close(bench.apply(rows, logits), torch.tensor(bench.expected(rows, logits)))
