"""The scheduler's choices as pure functions: how a step's prompt tokens are shared, who makes way for whom, copy or compute again.

Knows numbers only, neither sequences nor blocks nor tensors; called by the scheduler and by residency.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal


def prefill_budget(max_batch_tokens: int, decodes: int, long_prefill_tokens: int | None) -> int:
    """Prompt tokens that this step may compute. The cap holds only while something decodes: alone, prompts delay nobody's next token."""
    left = max_batch_tokens - decodes
    return min(left, long_prefill_tokens) if decodes and long_prefill_tokens is not None else left


def share_prefill(prompts: Seq[tuple[int, int]], budget: int) -> list[int]:
    """Tokens for each prompt of a step, given as (priority, remaining tokens) in order.

    A higher class is served before a lower one. Within a class the shortest remaining goes first, so that a short prompt does not sit out
    a long one; but the first in order always has half of what its class may spend, so that it is done after at most 2 x remaining / budget
    steps whatever arrives, and then the next one is first: no prompt starves. Prompts of one length are served in order.
    """
    counts = [0] * len(prompts)
    begin = 0
    while begin < len(prompts) and budget > 0:
        end = begin
        while end < len(prompts) and prompts[end][0] == prompts[begin][0]:
            end += 1
        counts[begin] = min(prompts[begin][1], budget - budget // 2)
        budget -= counts[begin]
        for i in sorted(range(begin, end), key=lambda i: prompts[i][1]):
            more = min(prompts[i][1] - counts[i], budget)
            counts[i] += more
            budget -= more
        begin = end
    return counts


def victims_needed(need: int, *, free: int, free_rows: int, running: int, freed: Seq[int]) -> int | None:
    """How many running sequences must make way for one of a higher class, last in order first. None: not even all of them would do, so
    none of them is disturbed.

    `need`: blocks it takes out of `free`; one more stays spare for each sequence that goes on. `freed`: blocks that each possible victim
    gives back. 0: there is room as it is.
    """
    for count in range(len(freed) + 1):
        left = running - count
        if (free_rows or count) and (left == 0 or need + left <= free + sum(freed[:count])):
            return count
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Of this engine on this device, as learned. 0: not known yet."""

    prefill_tokens_per_s: float = 0.0
    copy_bytes_per_s: float = 0.0
    """Between device and host, either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """How keys and values that have to leave the device, or did, come back."""

    way: Literal["copy", "recompute"]
    copy_s: float
    recompute_s: float
    reason: str


def choose_restore(*, tokens: int, copied_bytes: int, speeds: Speeds) -> Restore:
    """`tokens` would be computed again; `copied_bytes` would move instead, those of both ways where both are still to be done."""
    if speeds.prefill_tokens_per_s <= 0 or speeds.copy_bytes_per_s <= 0:
        return Restore(way="recompute", copy_s=0.0, recompute_s=0.0, reason="speeds are not known yet")
    copy_s, recompute_s = copied_bytes / speeds.copy_bytes_per_s, tokens / speeds.prefill_tokens_per_s
    way: Literal["copy", "recompute"] = "copy" if copy_s < recompute_s else "recompute"
    reason = f"{copied_bytes} bytes take {copy_s * 1e3:.2f} ms, {tokens} tokens {recompute_s * 1e3:.2f} ms"
    return Restore(way=way, copy_s=copy_s, recompute_s=recompute_s, reason=reason)
