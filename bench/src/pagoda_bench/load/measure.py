"""From records to figures: one load level's latencies, rates, goodput, errors and counting mismatches. Pure; called by run.py.

Which request counts for what:
- latencies, errors, the share of good requests: all that were due between the warm-up and the window's end, until their own end, wherever
  that lies. Leaving out those that end later would leave out the slowest.
- tokens/s, requests/s, goodput: what happened within the window, whenever it was sent. A request that lies across its edge counts by the
  part that lies inside: users in lockstep would else gain or lose a whole round at the edges.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median

from pagoda_bench.load.loops import LoopRun
from pagoda_bench.load.records import Record
from pagoda_bench.load.slo import Slo
from pagoda_bench.load.statistic import STATISTICS, Estimate, Spread, clustered_estimate, estimate, rate_per_s

DEFINITIONS = {
    "TTFT": "first chunk with text − due",
    "TPOT": "(end − first chunk with text) ÷ (output tokens − 1), one value a request with at least two chunks",
    "ITL": "chunk with text − the one before it, all gaps of all requests pooled",
    "E2E": "end − due; the end is the chunk with the finish_reason, or the last with text where that is later",
    "output tokens/s": "output tokens whose chunk arrived in the window ÷ its length; a request's tokens are spread evenly over its chunks",
    "input tokens/s": "prompt tokens ÷ window; a request's are spread evenly from due to first chunk, and the part in the window counts",
    "requests/s": "requests that ended well ÷ window; each is spread evenly from due to its end, and the part in the window counts",
    "goodput": "requests/s of those that kept the SLO; its share is of all counted requests",
}


@dataclass(frozen=True, slots=True)
class Counting:
    """What client and server say of the same tokens."""

    requests: int
    without_usage: int
    prompt_mismatches: int
    """Server's prompt_tokens differ from what was asked, where that was known."""
    output_mismatches: int
    """Server's completion_tokens differ from max_tokens."""
    more_chunks_than_tokens: int
    """The server's own usage is below the chunks with text that it sent."""
    client_differs: int | None
    """The text, encoded anew by the client's tokenizer, has another number of tokens; None: no tokenizer given."""
    tokens_per_chunk: float

    @property
    def one_token_a_chunk(self) -> bool:
        return 0.999 < self.tokens_per_chunk < 1.001


@dataclass(frozen=True, slots=True)
class Figures:
    latencies: Mapping[str, Mapping[str, Estimate]]
    """ttft, tpot, itl, e2e → mean, p50, … in seconds; without an entry where no request has one."""
    rates: Mapping[str, Estimate]
    """output_tokens_per_s, input_tokens_per_s, requests_per_s, and goodput_requests_per_s under an SLO."""
    good_ratio: float | None
    errors: Mapping[str, int]
    first_error: str
    counting: Counting
    counted: int
    window_s: float
    is_steady: bool
    send_late_s: Mapping[str, Estimate]
    """Sent − due: what the generator itself, or connecting, added. Part of the latencies."""
    is_falling_behind: bool
    """The last quarter of the requests waited over twice as long as the first, for the first token or for each: the queue grows."""


def counted(run: LoopRun) -> list[Record]:
    return [record for record in run.records if not record.warm and record.due_s < run.window.end_s]


def measure(runs: Sequence[LoopRun], slo: Slo | None) -> Figures:
    """Of the rounds of one level; latencies are pooled, rates are the median of the rounds with the lowest and highest of them."""
    records = [record for run in runs for record in counted(run)]
    good = [record for record in records if record.error is None]
    per_round = [_rates(run, slo) for run in runs if run.window.length_s > 0]
    failed = [record for record in records if record.error is not None]
    return Figures(
        latencies=_latencies(good),
        rates={name: _over_rounds([rates[name] for rates in per_round]) for name in per_round[0]} if per_round else {},
        good_ratio=sum(map(slo.met_by, records)) / len(records) if slo is not None and records else None,
        errors=dict(Counter(record.error or "" for record in failed)),
        first_error=failed[0].detail if failed else "",
        counting=_counting(good),
        counted=len(records),
        window_s=sum(run.window.length_s for run in runs),
        is_steady=all(run.window.is_steady for run in runs),
        send_late_s={name: estimate([record.lateness_s for record in records], name) for name in STATISTICS} if records else {},
        is_falling_behind=any(_falls_behind(run) for run in runs),
    )


def _falls_behind(run: LoopRun) -> bool:
    good = [record for record in sorted(counted(run), key=lambda record: record.due_s) if record.error is None]
    quarter = len(good) // 4
    if quarter < 8:
        return False
    early, late = good[:quarter], good[-quarter:]
    waits = median(record.ttft_s for record in late) > 2 * median(record.ttft_s for record in early) + 0.05
    slows = median(record.e2e_s / record.tokens for record in late) > 2 * median(record.e2e_s / record.tokens for record in early)
    return waits or slows


def _latencies(good: Sequence[Record]) -> dict[str, dict[str, Estimate]]:
    values = {
        "ttft": [record.ttft_s for record in good],
        "tpot": [tpot for record in good if (tpot := record.tpot_s) is not None],
        "e2e": [record.e2e_s for record in good],
    }
    latencies = {name: {statistic: estimate(v, statistic) for statistic in STATISTICS} for name, v in values.items() if v}
    if any(gaps := [record.gaps_s for record in good]):
        latencies["itl"] = {statistic: clustered_estimate(gaps, statistic) for statistic in STATISTICS}
    return latencies


def _rates(run: LoopRun, slo: Slo | None) -> dict[str, Estimate]:
    start_s, length_s = run.window.start_s, run.window.length_s

    def rate(events: Iterable[Spread]) -> Estimate:
        return rate_per_s(list(events), start_s, length_s)

    def whole(record: Record) -> Spread:
        return Spread(record.due_s, record.last_s, 1)

    good = [record for record in run.records if record.error is None]
    prompts = (Spread(record.due_s, record.arrivals[0], record.prompt_tokens or record.prompt_tokens_asked or 0) for record in good)
    rates = {
        "output_tokens_per_s": rate(chain.from_iterable(_tokens(record) for record in good)),
        "input_tokens_per_s": rate(prompts),
        "requests_per_s": rate(map(whole, good)),
    }
    if slo is not None:
        rates["goodput_requests_per_s"] = rate(whole(record) for record in good if slo.met_by(record))
    return rates


def _tokens(record: Record) -> Iterable[Spread]:
    weight = record.tokens / len(record.arrivals)
    return (Spread(at_s, at_s, weight) for at_s in record.arrivals)


def _over_rounds(rounds: Sequence[Estimate]) -> Estimate:
    if len(rounds) == 1:
        return rounds[0]
    values = [one.value for one in rounds]
    return Estimate(median(values), min(values), max(values))


def _counting(good: Sequence[Record]) -> Counting:
    chunks = sum(len(record.arrivals) for record in good)
    has_client_counts = any(record.client_output_tokens is not None for record in good)
    return Counting(
        requests=len(good),
        without_usage=sum(record.output_tokens is None for record in good),
        prompt_mismatches=sum(_differ(record.prompt_tokens, record.prompt_tokens_asked) for record in good),
        output_mismatches=sum(_differ(record.output_tokens, record.output_tokens_asked) for record in good),
        more_chunks_than_tokens=sum(record.output_tokens is not None and record.output_tokens < len(record.arrivals) for record in good),
        client_differs=sum(_differ(record.client_output_tokens, record.output_tokens) for record in good) if has_client_counts else None,
        tokens_per_chunk=sum(record.tokens for record in good) / chunks if chunks else 0.0,
    )


def _differ(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one != other
