"""How near two answers are where they need not be the same: rounding may choose another token, and moves logprobs. Called by truth.py."""

from pagoda_worker.completions import Completion

DRIFT_TOLERANCE = {"int8": 0.4, "int4": 0.4, "fp8": 0.1}
"""Of logprobs. Whoever rounds activations to eight bits rounds a few the other way when they differ in their last digit, and this random
model magnifies that: on one CPU, noise of 1e-6 on every norm moves logprobs by 0.1 in int8, 1e-5 by 0.16, 1e-4 by 0.27, which is as far
as int8 is from float32; a wrong scale moves them by more than 1. int4's kernels on CPUs round activations too; fp8's do not, its head is
int8."""


def drift(ours: Completion, theirs: Completion) -> float:
    """The largest difference of a sampled token's logprob, up to the first that differs."""
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    largest = 0.0
    for our_id, their_id, our, their in zip(ours.token_ids, theirs.token_ids, ours.logprobs, theirs.logprobs, strict=True):
        if our_id != their_id:
            break
        largest = max(largest, abs(our.sampled - their.sampled))
    return largest


def close_to(ours: Completion, theirs: Completion) -> bool:
    assert ours.logprobs is not None
    assert theirs.logprobs is not None
    for our_id, their_id, our_top, their_top in zip(ours.token_ids, theirs.token_ids, ours.logprobs, theirs.logprobs, strict=True):
        if our_id != their_id:
            return our_id in {token for token, _ in their_top.top} and their_id in {token for token, _ in our_top.top}
    return True
