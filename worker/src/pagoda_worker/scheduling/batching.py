"""Who may join a step, and with how much memory: the pure half of admission, with a switch for each idea that made it what it is.

Knows neither queues nor blocks nor clocks; called by the scheduler, which tells it counts and seconds. What is switched off here is how
servers worked before that idea; `docs/tour/` measures each one. The defaults are the full engine.
"""

from dataclasses import dataclass

from pagoda_worker.config import Batching, EngineConfig

STATIC_PATIENCE_S = 5.0
"""A static batch that nobody completes starts after this all the same: a lone request must not wait for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionPolicy:
    """Fields as in EngineConfig."""

    batching: Batching = "continuous"
    batch_window_s: float = 0.02
    paged_kv: bool = True
    kv_cache: bool = True
    chunked_prefill: bool = True

    @property
    def whole_prompts(self) -> bool:
        """A sequence that is not computed to its end in one step would be forgotten before it is: without a cache nothing is chunked."""
        return not (self.chunked_prefill and self.kv_cache)

    @property
    def patience_s(self) -> float:
        """How long the first in line waits for a full batch."""
        return self.batch_window_s if self.batching == "dynamic" else STATIC_PATIENCE_S


FULL_ENGINE = AdmissionPolicy()


def policy_of(config: EngineConfig) -> AdmissionPolicy:
    return AdmissionPolicy(
        batching=config.batching,
        batch_window_s=config.batch_window_s,
        paged_kv=config.paged_kv,
        kv_cache=config.kv_cache,
        chunked_prefill=config.chunked_prefill,
    )


def open_places(policy: AdmissionPolicy, *, size: int, left: int, running: int, waiting: int, waited_s: float) -> int:
    """How many of those waiting may join now.

    `size`: of a full batch. `left`: what this function said in the step before, minus those who joined since: a batch may take more than
    one step to form, but whoever was not there when it started never joins it. `waited_s`: of the first in line.
    """
    if policy.batching == "continuous":
        return size
    if running:
        return left
    if waiting >= size or (waiting and waited_s >= policy.patience_s):
        return min(size, waiting)
    return 0


def reserved_tokens(policy: AdmissionPolicy, *, length: int, max_model_len: int) -> int:
    """KV cache that a sequence of this length needs to begin. Without pages it gets, once, what it could ever grow to."""
    return length if policy.paged_kv else max_model_len
