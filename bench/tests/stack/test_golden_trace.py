"""The golden trace of a real stack against the client's own clock and the engine's own counts."""

import itertools
import statistics

import pytest

from pagoda_bench.local_stack import LocalStack
from pagoda_bench.trace_check import compare

PARTS = ["receive", "prepare", "queue_wait", "route", "worker_queue", "prefill", "decode", "stream"]
TOKENS = 32


@pytest.mark.parametrize("stream", [True, False])
def test_the_parts_of_a_trace_add_up_to_what_the_client_waited(stack: LocalStack, stream: bool) -> None:
    compare(stack.url, 1, max_tokens=TOKENS, stream=stream)
    found = compare(stack.url, 9, max_tokens=TOKENS, stream=stream)
    for one in found:
        parts, told = one.trace["phases"], one.trace
        assert [part["name"] for part in parts] == PARTS
        assert one.parts_ms == pytest.approx(told["total_ms"], abs=1e-6)
        assert all(before["start_ms"] + before["ms"] == pytest.approx(after["start_ms"]) for before, after in itertools.pairwise(parts))
        assert one.parts_ms <= one.wall_ms, "nothing of it lies outside the client's own wait"
        assert told["worker"]["clock"]["shared"], "one host, one clock"
        assert told["worker"]["steps"] >= TOKENS
        assert sum(steps for _, steps in told["worker"]["batch_sizes"]) == TOKENS
        assert told["tokens"]["output"] == TOKENS
    # The kernel, two HTTP parsers and a shared machine lie between the two. The tight figure is trace_check's.
    assert statistics.median(one.untold_ms for one in found) <= max(50.0, 0.25 * statistics.median(one.wall_ms for one in found))
