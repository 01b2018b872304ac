"""How long a request would take on a worker: time to the first token and time per token after it, in milliseconds. Pure.

    ttft = uncached prompt tokens waiting there / prefill rate     whoever is prefilled before us
         + own uncached prompt tokens / prefill rate               us
         + the step under way, if there is one
         + sequences too many × output × step / max_running        those that must end before there is a place for us
         + waking, if it sleeps
    tpot = step + what one more sequence adds to a step

Rates are the worker's own, learned ones, so a fast machine beside a slow one gets what it can do. A worker that has not measured yet counts
as the mean of those that have. Used by the policy `predicted`, and for every placement's trace, whatever policy made it.
"""

from collections.abc import Iterable
from typing import NamedTuple

from pagoda_router.policies.facts import RequestFacts, WorkerView

UNMEASURED_PREFILL_TOKENS_PER_S = 2000.0
UNMEASURED_DECODE_STEP_MS = 30.0
WAKE_MS = 10_000.0
"""Assumed of a worker that sleeps: one that is awake is taken until its queue is that long, so that nobody is woken for nothing."""


class UsualRates(NamedTuple):
    """Of the workers at hand, for those among them that have not measured yet."""

    prefill_tokens_per_s: float
    decode_step_ms: float


class Prediction(NamedTuple):
    ttft_ms: float
    tpot_ms: float


def usual_rates(views: Iterable[WorkerView]) -> UsualRates:
    prefill, decode, prefill_count, decode_count = 0.0, 0.0, 0, 0
    for view in views:
        if view.prefill_tokens_per_s > 0:
            prefill, prefill_count = prefill + view.prefill_tokens_per_s, prefill_count + 1
        if view.decode_step_ms > 0:
            decode, decode_count = decode + view.decode_step_ms, decode_count + 1
    return UsualRates(
        prefill / prefill_count if prefill_count else UNMEASURED_PREFILL_TOKENS_PER_S,
        decode / decode_count if decode_count else UNMEASURED_DECODE_STEP_MS,
    )


def prefill_ms_per_token(view: WorkerView, usual: UsualRates) -> float:
    return 1000 / (view.prefill_tokens_per_s or usual.prefill_tokens_per_s)


def predict(facts: RequestFacts, view: WorkerView, usual: UsualRates) -> Prediction:
    step_ms = view.decode_step_ms or usual.decode_step_ms
    max_running = view.max_running or 1
    ttft_ms = (view.queued_prefill_tokens + facts.uncached_tokens(view)) * prefill_ms_per_token(view, usual)
    if view.running:
        ttft_ms += step_ms
    too_many = view.running + view.waiting + 1 - max_running
    if too_many > 0:
        ttft_ms += too_many * facts.cost.output_tokens * step_ms / max_running
    if view.sleeps:
        ttft_ms += WAKE_MS
    more_ms = view.decode_step_ms_per_sequence
    # Not learned yet: a full batch is taken to need twice the step of a single sequence.
    tpot_ms = step_ms * (1 + view.running / max_running) if more_ms is None else step_ms + more_ms * (view.waiting + 1)
    return Prediction(ttft_ms, tpot_ms)
