"""What a real scrape of a front says, against docs/metrics.md and against the rules of the trade (those of `promtool check metrics`)."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from front_support import running_front
from nvml_double import UUID, FakeNvml
from prometheus_client.metrics_core import Metric

from pagoda_worker.front.gpu import GpuReader
from pagoda_worker.wire import worker_pb2 as pb

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(?P<name>[^`]+)` \| (?P<kind>\w+) \| (?P<labels>[^|]+) \| (?P<meaning>[^|]+) \|")
VLLMS_OWN_RULE = {"vllm:iteration_tokens_total"}
"""A histogram that ends in _total: vLLM's name for it."""
CLIENTS_TEXT = "ignore previous instructions"


@dataclass(frozen=True)
class Described:
    name: str
    kind: str
    labels: frozenset[str]


def documented() -> list[Described]:
    """The rows of the Worker chapter."""
    chapter = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)
    [worker] = [text for text in chapter if text.startswith("Worker\n")]
    rows = [match for line in worker.splitlines() if (match := ROW.fullmatch(line))]
    assert len(rows) == len([line for line in worker.splitlines() if line.startswith("| `")]), "a row that is not read as one"
    return [Described(row["name"], row["kind"], frozenset(re.findall(r"`(\w+)`", row["labels"]))) for row in rows]


def as_scraped(family: Metric) -> Described:
    """The parser takes _total from a counter's name."""
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
    assert len(labels) == 1, f"samples of {name} differ in their labels: {labels}"
    return Described(name, family.type, next(iter(labels)))


@pytest.fixture
async def scraped() -> list[Metric]:
    """Of a front that served, refused and lost requests, some with things in them that must not become labels. Its GPU is a double's."""
    async with running_front(gpu_reader=GpuReader(load=FakeNvml, timeout_s=30.0)) as bench:
        router = await bench.router(router_id=CLIENTS_TEXT)
        before = series(await bench.scrape())
        trace = pb.TraceContext(traceparent=CLIENTS_TEXT, tracestate=CLIENTS_TEXT)
        for request_id in range(1, 30):
            await router.submit(request_id, [request_id], max_tokens=request_id, n=1 + request_id % 3, trace=trace)
        await router.submit(100, [7], model=CLIENTS_TEXT)
        await router.submit(101, [7], adapter=CLIENTS_TEXT)
        await router.refusal(101)
        for request_id in range(1, 30):
            await router.finish(request_id)
        families = await bench.scrape()
        assert series(families) == before, "requests added series"
        facts = bench.front.switchboard.facts
        assert facts is not None
        bench.front.switchboard.facts = replace(facts, gpu_uuids=[UUID])
        return await bench.scrape()


def series(families: list[Metric]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


async def test_the_document_and_a_scrape_agree(scraped: list[Metric]):
    told = [as_scraped(family) for family in scraped]
    rows = documented()
    assert len({row.name for row in rows}) == len(rows), "a name is documented twice"
    assert {each.name for each in told} == {row.name for row in rows}
    assert sorted(told, key=lambda each: each.name) == sorted(rows, key=lambda each: each.name)


async def test_a_scrape_keeps_the_rules_of_the_trade(scraped: list[Metric]):
    for family in scraped:
        assert family.documentation, f"{family.name} has no help text"
        assert family.type != "unknown", f"{family.name} has no type"
        assert re.fullmatch(r"vllm:[a-z0-9_]+|pagoda_[a-z0-9_]+", family.name), "colons are vLLM's, not ours"
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        elif family.name not in VLLMS_OWN_RULE:
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket")), f"{family.name} says it is something else"
        assert not re.search(r"_(ms|milliseconds|us|kb|mb|gb|percent)(_|$)", family.name), f"{family.name} is not in base units"


async def test_series_are_few_and_hold_nothing_of_a_clients(scraped: list[Metric]):
    samples = [sample for family in scraped for sample in family.samples]
    assert len(samples) < 600
    values = {value for sample in samples for label, value in sample.labels.items() if label != "le"}
    assert CLIENTS_TEXT not in values
    assert len(values) < 40, f"labels take too many values: {values}"
    assert len(series(scraped)) == len(samples), "a series twice"
