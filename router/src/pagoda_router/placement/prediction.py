"""How long a request would take on a worker: time to the first token and time per token after it, in milliseconds. Pure.

    ttft = uncached prompt tokens waiting there / prefill rate     whoever is prefilled before us: beyond our own length a half of them
         + own uncached prompt tokens / prefill rate               us
         + what a step costs that computes prompts, whatever their length
         + the step under way, if there is one: as long as steps are, or as it has lasted already
         + sequences too many × output × step / max_running        those that must end before there is a place for us
         + waking, if it sleeps
    tpot = step + what one more sequence adds to a step

The engine gives half of a step's prompt tokens to the first in line and the rest to the shortest (the worker's policy.share_prefill). So as
long as our prompt is computed somebody else's gets as much; of what waits beyond that, the longer ones let us pass and the shorter ones do
not. Nobody tells how long they are.

Rates are the worker's own, learned ones, so a fast machine beside a slow one gets what it can do. A worker that has not measured yet counts
as the mean of those that have. Used by the policy `predicted`, and for every placement's trace, whatever policy made it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pagoda_router.placement.facts import RequestFacts, WorkerView

UNMEASURED_PREFILL_TOKENS_PER_S = 2000.0
UNMEASURED_DECODE_STEP_MS = 30.0
LONGER_SHARE = 0.5
"""Of prompt tokens that wait somewhere beyond a prompt's own length: so many are computed before it. All of them sent short prompts past a
worker that would have let them in; a quarter made long ones in bursts wait (docs/log.md)."""
WAKE_MS = 10_000.0
"""Assumed of a worker that sleeps: one that is awake is taken until its queue is that long, so that nobody is woken for nothing."""


class UsualRates(NamedTuple):
    """Of the workers at hand, for those among them that have not measured yet."""

    prefill_tokens_per_s: float
    decode_step_ms: float


class Prediction(NamedTuple):
    ttft_ms: float
    tpot_ms: float


def usual_rates(views: Sequence[WorkerView]) -> UsualRates:
    prefill_sum = decode_sum = 0.0
    prefill = decode = 0
    for view in views:
        if (rate := view.prefill_tokens_per_s) > 0:
            prefill_sum, prefill = prefill_sum + rate, prefill + 1
        if (step_ms := view.decode_step_ms) > 0:
            decode_sum, decode = decode_sum + step_ms, decode + 1
    return UsualRates(
        prefill_sum / prefill if prefill else UNMEASURED_PREFILL_TOKENS_PER_S,
        decode_sum / decode if decode else UNMEASURED_DECODE_STEP_MS,
    )


def prefill_ms_per_token(view: WorkerView, usual: UsualRates) -> float:
    return 1000 / (view.prefill_tokens_per_s or usual.prefill_tokens_per_s)


def predict(facts: RequestFacts, view: WorkerView, usual: UsualRates) -> Prediction:
    return Prediction(*times_ms(facts.cost.prompt_tokens, facts.cost.output_tokens, view, usual))


def times_ms(prompt_tokens: int, output_tokens: int, view: WorkerView, usual: UsualRates) -> tuple[float, float]:
    """The same without names: it runs once per worker and request, so it looks at each fact once and calls nobody."""
    step_ms = view.decode_step_ms or usual.decode_step_ms
    running, waiting, max_running = view.running, view.waiting, view.max_running or 1
    uncached = max(1, prompt_tokens - view.cached_tokens)
    ahead: float = view.queued_prefill_tokens
    if ahead > uncached:
        ahead = uncached + LONGER_SHARE * (ahead - uncached)
    ttft_ms = 1000 * (ahead + uncached) / (view.prefill_tokens_per_s or usual.prefill_tokens_per_s)
    ttft_ms += view.prefill_step_ms
    # A step that should have ended goes on, nobody knows why: for as long again, as far as anybody can say.
    silent_ms = 1000 * view.silent_s
    ttft_ms += max(step_ms, silent_ms) if running else silent_ms
    too_many = running + waiting + 1 - max_running
    if too_many > 0:
        ttft_ms += too_many * output_tokens * step_ms / max_running
    if view.sleeps:
        ttft_ms += WAKE_MS
    more_ms = view.decode_step_ms_per_sequence
    # Not learned yet: a full batch is taken to need twice the step of a single sequence.
    return ttft_ms, step_ms * (1 + running / max_running) if more_ms is None else step_ms + more_ms * (waiting + (running > 0))
