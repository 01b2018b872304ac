"""What is asked of each router, and what was promised of ours. Pure tables; run.py walks them, report.py judges by them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pagoda_bench.results import Row

OURS = "pagoda"
RELAYING = "pagoda before vLLM"
"""Ours too, in front of the mock backend as the peers are, which it takes for a vLLM: it tokenizes nothing, as they do not."""
TWICE = "pagoda x2"
WORDS = "mock-0ms-words"
DIRECT = "none"
"""The load generator straight to the mock backend: what the added latency is added to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    case: str
    model: str
    """A mock's name says its pace: its first token comes at once, each further one after so long; at 0 ms all come together."""
    tokens: int
    stream: bool
    connections: int
    rate: float | None = None
    """Open loop: requests a second, evenly. None: closed loop, each connection asks again when it is answered."""
    prompt_bytes: int = 100
    ids: bool = False
    """The prompt is token ids, so that the router need not tokenize (peers never do: their backends would)."""
    again: bool = False
    """Each prompt is the one before but for its last 500 bytes, as in a conversation. Else no two have a passage in common."""
    beside_rate: float | None = None
    """So many prompts of 220 KB a second, to a model without a pace, beside the requests that are measured."""
    is_per_process: bool = False
    """`connections` are each process's: of two, so many twice."""
    tells_pauses: bool = False
    """Rows for the time between a stream's tokens."""
    counts: Literal["requests", "tokens"] = "requests"
    """What CPU time and ceilings are told by."""
    only: tuple[str, ...] = ()
    """Systems; empty: all."""

    def load_arguments(self, url: str, key: str, *, warm_up_s: float, window_s: float, processes: int = 1) -> list[str]:
        """`processes`: of the router."""
        connections = self.connections * (processes if self.is_per_process else 1)
        path = "/v1/completions" if self.ids else "/v1/chat/completions"
        arguments = ["load", f"-url={url}{path}", f"-key={key}", f"-model={self.model}", f"-tokens={self.tokens}"]
        arguments += [f"-connections={connections}", f"-prompt-bytes={self.prompt_bytes}"]
        arguments += [f"-warm-up={warm_up_s}s", f"-window={window_s}s", "-timeout=15s"]
        if self.rate is not None:
            arguments.append(f"-rate={self.rate}")
        if self.beside_rate is not None:
            arguments += [f"-beside-rate={self.beside_rate}", f"-beside-bytes={LONG_BYTES}", "-beside-model=mock-0ms"]
        return [*arguments, *(f"-{name}" for name in ("stream", "ids", "again") if getattr(self, name))]


LONG_BYTES = 220_000

SHORT_RATE = Scenario(case="short rate=500", model="mock-1ms", tokens=8, stream=True, rate=500, connections=512)
SHORT_MOST = Scenario(case="short c=64", model="mock-0ms", tokens=8, stream=False, connections=64)
PACED_50 = Scenario(case="paced c=50", model="mock-10ms", tokens=128, stream=True, connections=50, counts="tokens")
PACED_200 = Scenario(case="paced c=200", model="mock-10ms", tokens=128, stream=True, connections=200, counts="tokens")
PACED_400 = replace(PACED_200, case="paced c=400", connections=400)
"""Asks for 40 000 tokens/s, which is more than was promised of a core."""
BESIDE_NONE = replace(PACED_50, case="pauses of 50 streams", tells_pauses=True)
BESIDE_LONG = replace(BESIDE_NONE, case="pauses of 50 streams beside 220 KB rate=5", beside_rate=5)
LONG_TEXT = Scenario(case="220 KB rate=5", model="mock-0ms", tokens=8, stream=True, rate=5, connections=64, prompt_bytes=LONG_BYTES)
LONG_AGAIN = replace(LONG_TEXT, case="220 KB again rate=5", again=True)
LONG_WORDS, AGAIN_WORDS = (replace(one, case=one.case.replace("KB", "KB of words"), model=WORDS) for one in (LONG_TEXT, LONG_AGAIN))
"""A model whose vocabulary cuts prose in pieces of 4.5 bytes, as today's do; the tiny model's makes 2.4 times as many tokens."""
LONG_IDS = Scenario(
    case="220 KB ids rate=5", model="mock-0ms", tokens=8, stream=True, rate=5, connections=64, prompt_bytes=LONG_BYTES, ids=True
)
SCENARIOS = (
    *(SHORT_RATE, SHORT_MOST, PACED_50, PACED_200, PACED_400),
    *(LONG_TEXT, LONG_AGAIN, LONG_WORDS, AGAIN_WORDS, LONG_IDS),
    *(BESIDE_NONE, BESIDE_LONG),
)
SOAK = Scenario(case="soak rate=300", model="mock-1ms", tokens=8, stream=True, rate=300, connections=512, only=(OURS,))
SCALING = (
    replace(SHORT_MOST, case="two cores: short c=64"),
    replace(SHORT_MOST, case="two cores: short c=64 each", is_per_process=True),
    replace(PACED_200, case="two cores: paced c=200"),
    replace(PACED_200, case="two cores: paced c=200 each", is_per_process=True),
)
"""Of one and of two processes of ours that share a port; they and the rig may use both cores. A token costs a process the less, the more
streams it has, since a worker's frame is read once for all, and a short request the less, the more come with it: so what two lose to each
other shows where each has as many as the one."""

LEAST_SCALING = 1.8
"""Times as much as one process must two be able to do."""
CEILING_FACTOR = 3.0
"""So many times the figure must the rig be able to do; below that the run says that it was the rig that was measured."""


@dataclass(frozen=True, slots=True)
class Aim:
    case: str
    metric: str
    bound: float
    is_floor: bool = False

    def judged(self, value: float) -> tuple[str, bool]:
        """The aim as it is shown, and whether it is met."""
        return (f"≥ {self.bound:g}", value >= self.bound) if self.is_floor else (f"< {self.bound:g}", value < self.bound)


AIMS: Sequence[Aim] = (
    Aim(SHORT_RATE.case, "added_ttft_p50_s", 0.001),
    Aim(SHORT_RATE.case, "added_ttft_p99_s", 0.005),
    Aim(SHORT_MOST.case, "requests_per_s", 2600, is_floor=True),
    Aim(PACED_200.case, "cpu_per_1k_tokens_s", 0.030),
    Aim(PACED_400.case, "tokens_per_s", 30_000, is_floor=True),
    *(Aim(one.case, "added_ttft_p50_s", 0.003) for one in (LONG_TEXT, LONG_AGAIN, LONG_WORDS, AGAIN_WORDS, LONG_IDS)),
    Aim(SOAK.case, "rss_growth_ratio", 1.05),
)


def with_aim(row: Row) -> Row:
    """The row as a promise kept or not, where one was made."""
    if row.system not in (OURS, RELAYING):
        return row
    for aim in AIMS:
        if (aim.case, aim.metric) == (row.case, row.metric):
            shown, met = aim.judged(row.value)
            return replace(row, aim=shown, met=met)
    return row
