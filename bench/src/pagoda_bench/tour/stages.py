"""The tour's stages: what each switches on over the one before, and which of its figures tell the story. Data; called by all of `tour`.

Fields of `engine` are those of the worker's EngineConfig, sent as a job to `python -m pagoda_worker.offline`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BATCH = 8
"""Places of a batch, and how many contexts of full length the KV cache holds in every stage: all stages have the same memory."""
RUNNING = 32
"""Rows where pages let more run than there is room for full contexts."""
CONTEXT = 448
"""max_model_len: the longest prompt and the longest output of the workload, rounded up."""
CHUNKED_BUDGET = 128
"""Tokens of a step once prompts may be cut; without that a step must hold a whole one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    slug: str
    """Of its page and its plot, and the `case` of its rows."""
    title: str
    engine: Mapping[str, Any]
    gain: str
    """The figure in which its gain is told."""
    shows: tuple[str, ...] = ()
    """Further figures of its page."""
    arrivals: bool = True
    """Measured with arrivals spread over time too."""
    cuda_only: bool = False
    """Says nothing on a CPU: its row then reads "needs a GPU"."""

    @property
    def page(self) -> str:
        return f"{self.slug}.md"


_PLAIN = {
    "prefix_caching": False,
    "chunked_prefill": False,
    "paged_kv": False,
    "batching": "continuous",
    "max_running": BATCH,
    "async_scheduling": False,
    "cuda_graphs": False,
}
"""The last two are off in words: on CUDA their defaults are on, and every stage would have them."""
_CHUNKED = {
    **_PLAIN,
    "paged_kv": True,
    "max_running": RUNNING,
    "prefix_caching": True,
    "chunked_prefill": True,
    "max_batch_tokens": CHUNKED_BUDGET,
}

STAGES = (
    Stage(
        slug="01-minimal-loop",
        title="The minimal loop",
        engine={**_PLAIN, "kv_cache": False, "max_running": 1},
        gain="output_tokens_per_s",
        shows=("computed_tokens", "e2e_mean_s"),
        arrivals=False,
    ),
    Stage(
        slug="02-kv-cache",
        title="KV cache",
        engine={**_PLAIN, "max_running": 1},
        gain="output_tokens_per_s",
        shows=("computed_tokens", "e2e_mean_s"),
        arrivals=False,
    ),
    Stage(
        slug="03-static-batching",
        title="Static batching",
        engine={**_PLAIN, "batching": "static"},
        gain="output_tokens_per_s",
        shows=("sequences_per_step", "steps", "e2e_mean_s", "itl_p50_s"),
    ),
    Stage(
        slug="04-dynamic-batching",
        title="Dynamic batching",
        engine={**_PLAIN, "batching": "dynamic"},
        gain="arrivals_ttft_p50_s",
        shows=("arrivals_e2e_mean_s", "arrivals_sequences_per_step", "output_tokens_per_s"),
    ),
    Stage(
        slug="05-continuous-batching",
        title="Continuous batching",
        engine=_PLAIN,
        gain="output_tokens_per_s",
        shows=("sequences_per_step", "steps", "arrivals_ttft_p50_s", "itl_p99_s"),
    ),
    Stage(
        slug="06-paged-kv",
        title="Paged KV cache",
        engine={**_PLAIN, "paged_kv": True, "max_running": RUNNING},
        gain="output_tokens_per_s",
        shows=("kv_filled_ratio", "sequences_per_step", "ttft_p50_s", "itl_p50_s"),
    ),
    Stage(
        slug="07-prefix-cache",
        title="Prefix cache",
        engine={**_PLAIN, "paged_kv": True, "max_running": RUNNING, "prefix_caching": True},
        gain="output_tokens_per_s",
        shows=("computed_tokens", "prefix_hit_tokens", "ttft_p50_s"),
    ),
    Stage(
        slug="08-chunked-prefill",
        title="Chunked prefill",
        engine=_CHUNKED,
        gain="itl_p99_s",
        shows=("arrivals_itl_p99_s", "ttft_p50_s", "output_tokens_per_s"),
    ),
    Stage(
        slug="09-async-scheduling",
        title="Async scheduling",
        engine={**_CHUNKED, "async_scheduling": True},
        gain="output_tokens_per_s",
        shows=("itl_p50_s", "ttft_p50_s", "arrivals_ttft_p50_s"),
    ),
    Stage(
        slug="10-cuda-graphs",
        title="CUDA graphs",
        engine={**_CHUNKED, "async_scheduling": True, "cuda_graphs": True},
        gain="output_tokens_per_s",
        shows=("itl_p50_s", "arrivals_itl_p99_s", "load_s"),
        cuda_only=True,
    ),
)
FIRST, ONE_AT_A_TIME, STATIC, DYNAMIC, CONTINUOUS, PAGED = STAGES[:6]


@dataclass(frozen=True, slots=True)
class Figure:
    key: str
    """Of the worker's answer."""
    unit: str
    factor: float
    label: str
    more_is_better: bool | None
    """None: neither; it explains the others."""


FIGURES: dict[str, Figure] = {
    "output_tokens_per_s": Figure("tokens_per_s", "tokens/s", 1.0, "output tokens/s", True),
    "ttft_p50_s": Figure("ttft_p50_ms", "s", 1e-3, "time to first token, p50", False),
    "e2e_mean_s": Figure("e2e_mean_ms", "s", 1e-3, "time to last token, mean", False),
    "itl_p50_s": Figure("itl_p50_ms", "s", 1e-3, "gap between tokens, p50", False),
    "itl_p99_s": Figure("itl_p99_ms", "s", 1e-3, "gap between tokens, p99", False),
    "load_s": Figure("load_s", "s", 1.0, "time to start the engine", False),
    "steps": Figure("steps", "1", 1.0, "steps", None),
    "sequences_per_step": Figure("sequences_per_step", "1", 1.0, "sequences in a step, mean", None),
    "computed_tokens": Figure("computed_tokens", "tokens", 1.0, "tokens computed", False),
    "prefix_hit_tokens": Figure("prefix_hit_tokens", "tokens", 1.0, "prompt tokens found in the cache", None),
    "kv_held_ratio": Figure("kv_held_ratio", "1", 1.0, "KV cache held while somebody waits, of all", True),
    "kv_filled_ratio": Figure("kv_filled_ratio", "1", 1.0, "KV cache written, of what is held", True),
}
ARRIVAL_FIGURES = ("ttft_p50_s", "e2e_mean_s", "itl_p99_s", "sequences_per_step")
"""Those told with arrivals too, as `arrivals_…`."""


def figure(metric: str) -> Figure:
    return FIGURES[metric.removeprefix("arrivals_")]


def label(metric: str) -> str:
    return figure(metric).label + (" (arrivals)" if metric.startswith("arrivals_") else "")
