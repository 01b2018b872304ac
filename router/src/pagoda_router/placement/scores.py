"""The policies: each scores every candidate, the lowest score is taken. Pure functions of the request's facts and the candidates' views.

policy.py has the frame around them: who is a candidate, who wins among equals, and why. docs/routing.md says when to choose which.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.prediction import UsualRates, prefill_ms_per_token, times_ms

Scores = list[float]
Policy = Callable[[RequestFacts, Sequence[WorkerView], UsualRates], Scores]
"""The rates: of the candidates, for those that have not measured yet."""

TPOT_TOKENS = 16
"""Tokens of the answer whose pace counts beside its first: about what a reader waits for before reading along. All of a long answer would
send the next request to the emptiest batch at the price of a first token seconds later, and weigh a measured step's noise as much."""
AFFINITY_SHARE = 0.5
"""Of the time that computing a cached prefix a second time takes: so much later a first token may be to keep it on one worker. The copy
would also push out somebody else's prefix, which no prediction sees."""
SLOWED_SHARE = 0.1
"""Of a prompt's prefill, per sequence that decodes there: their next tokens wait while it is computed. It is a tenth of what they lose
together: enough to send long prompts where few decode, and little beside a short prompt's own wait (docs/log.md)."""
LANE_SHARE = 0.5
"""Of a prompt's prefill, per lane of distance and full batch: what those that run there lose to a prompt of another length."""
LANE_LOAD = 0.5
"""Of the mean load, per lane of distance: by so much more a worker of the own lane may have to do (policy `length`)."""
ELSEWHERE_MS = 2.0
"""For every token's way to another zone and back; traffic between zones also costs money."""
ADAPTER_COPY_MS = 5.0
"""For an adapter that is in no slot there: some 30 MB are copied into one, and another adapter's request may wait for its turn."""
FAR_MORE_LOADED = 1.5
"""Times the mean of all, in uncached tokens still to compute: then a prefix is worth no detour (policy `prefix`)."""


class PolicyName(StrEnum):
    """Of spec.routing.policy."""

    PREDICTED = "predicted"
    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    GPU_AWARE = "gpu-aware"
    PREFIX = "prefix"
    LENGTH = "length"


POLICY = PolicyName.PREDICTED
"""Unless the manifest names another."""


def round_robin(facts: RequestFacts, views: Sequence[WorkerView], usual: UsualRates) -> Scores:
    """Whoever had a turn longest ago."""
    return [facts.turn_of.get(view.worker, 0) for view in views]


def least_loaded(facts: RequestFacts, views: Sequence[WorkerView], usual: UsualRates) -> Scores:
    """Fewest sequences, running and waiting."""
    return [view.running + view.waiting for view in views]


def gpu_aware(facts: RequestFacts, views: Sequence[WorkerView], usual: UsualRates) -> Scores:
    """Share of the KV cache in use with this request in it, plus share of the batch: a larger device takes more. In use is what sequences
    of all routers hold, or what this one reserved if that is more. What it may still reserve tells nothing: a share of what is free."""
    needed = facts.cost.kv_tokens
    return [
        (max(view.used_tokens, view.reserved_tokens) + needed) / max(1, view.capacity_tokens)
        + (view.running + view.waiting) / max(1, view.max_running)
        for view in views
    ]


def prefix(facts: RequestFacts, views: Sequence[WorkerView], usual: UsualRates) -> Scores:
    """Fewest tokens to compute; among equals the least loaded. A worker with far more to compute than the others keeps nobody for its
    cache: affinity without a bound melts whoever holds the prompt that everybody shares."""
    bound = FAR_MORE_LOADED * sum(view.queued_prefill_tokens for view in views) / len(views) + facts.cost.prompt_tokens
    scores = []
    for view in views:
        is_overrun = view.queued_prefill_tokens > bound or view.running + view.waiting >= view.max_running
        to_compute = facts.cost.prompt_tokens if is_overrun else facts.uncached_tokens(view)
        load = view.queued_prefill_tokens + view.running + view.waiting
        scores.append(to_compute + load / (1 + load))  # the load is below one token: it only decides between equals
    return scores


def length(facts: RequestFacts, views: Sequence[WorkerView], usual: UsualRates) -> Scores:
    """Workers of the request's own length lane first, the least loaded of them; work conserving, since an idle worker has no lane and every
    lane of distance costs no more than LANE_LOAD of what a worker has to do."""
    loads = [view.running + view.waiting for view in views]
    mean = max(1.0, sum(loads) / len(loads))
    return [LANE_LOAD * facts.lanes_away(view) * (load > 0) + load / mean for view, load in zip(views, loads, strict=True)]


def predicted(facts: RequestFacts, views: Sequence[WorkerView], usual: UsualRates) -> Scores:
    """Milliseconds: first token and the pace of the next ones, what the prompt costs those that decode there, more if they are of other
    lengths, and the way to another zone. The best cached worker gets a bonus of AFFINITY_SHARE of the prefill that it saves over the
    fastest one."""
    prompt_tokens, output_tokens, has_lanes = facts.cost.prompt_tokens, facts.cost.output_tokens, bool(facts.lane_of)
    pace_tokens = min(output_tokens, TPOT_TOKENS)
    scores: Scores = []
    for view in views:
        ttft_ms, tpot_ms = times_ms(prompt_tokens, output_tokens, view, usual)
        score = ttft_ms + pace_tokens * tpot_ms
        if running := view.running:
            own_ms = 1000 * max(1, prompt_tokens - view.cached_tokens) / (view.prefill_tokens_per_s or usual.prefill_tokens_per_s)
            score += SLOWED_SHARE * own_ms * running
            if has_lanes and (away := facts.lanes_away(view)):
                score += LANE_SHARE * away * own_ms * min(1.0, running / max(1, view.max_running))
        if view.is_elsewhere:
            score += ELSEWHERE_MS
        if view.adapter_to_copy:
            score += ADAPTER_COPY_MS
        scores.append(score)
    most_tokens = max([view.cached_tokens for view in views])
    if most_tokens:
        _keep_affinity(views, scores, most_tokens, usual)
    return scores


def _keep_affinity(views: Sequence[WorkerView], scores: Scores, most_tokens: int, usual: UsualRates) -> None:
    """Takes the slack off the best score among those with most of the prompt cached, where somebody with less of it would be faster."""
    best = scores.index(min(scores))
    cached = min((at for at, view in enumerate(views) if view.cached_tokens == most_tokens), key=scores.__getitem__)
    if (more_tokens := most_tokens - views[best].cached_tokens) > 0:
        scores[cached] -= AFFINITY_SHARE * more_tokens * prefill_ms_per_token(views[best], usual)


POLICIES: Mapping[PolicyName, Policy] = {
    PolicyName.PREDICTED: predicted,
    PolicyName.ROUND_ROBIN: round_robin,
    PolicyName.LEAST_LOADED: least_loaded,
    PolicyName.GPU_AWARE: gpu_aware,
    PolicyName.PREFIX: prefix,
    PolicyName.LENGTH: length,
}
