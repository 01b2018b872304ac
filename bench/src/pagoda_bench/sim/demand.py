"""What users ask for: conversations with their lengths, beginnings and pauses, drawn from a workload's parameters and a seed. Pure.

    prompt of turn k   [ tenant's prefix | own of turn 1 | answer 1 | own of turn 2 | answer 2 | … | own of turn k ]

Block hashes stand for contents: blocks within the prefix are the tenant's, later ones the conversation's, both by position. So a turn's
prompt begins with the whole turn before, as a chat template makes it. Called by run.py; the loop asks each conversation for its turns.
"""

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

from pagoda_bench.sim.parameters import Part, Workload


@dataclass(frozen=True, slots=True)
class Turn:
    prompt_tokens: int
    """The whole prompt, history and all."""
    output_tokens: int
    think_s: float
    """After its answer, until the next turn."""


@dataclass(frozen=True, slots=True)
class Conversation:
    id: int
    at_s: float
    """When its first turn arrives."""
    tenant: int
    prefix_tokens: int
    turns: tuple[Turn, ...]
    block_size: int
    prefix_hashes: tuple[bytes, ...]
    """Of the tenant's full blocks."""
    _own_hashes: list[bytes] = field(default_factory=list)

    def hashes(self, tokens: int) -> tuple[bytes, ...]:
        """Of the full blocks of its first `tokens` tokens."""
        blocks = tokens // self.block_size
        shared = min(blocks, len(self.prefix_hashes))
        own = blocks - shared
        for at in range(len(self._own_hashes), own):
            self._own_hashes.append(b"c%d:%d" % (self.id, at))
        return self.prefix_hashes[:shared] + tuple(self._own_hashes[:own])


def conversations(workload: Workload, rate_per_s: float, duration_s: float, seed: int, block_size: int) -> list[Conversation]:
    """`rate_per_s`: of conversations. In the order of their arrival."""
    rng = Random(f"{workload.name} {seed}")
    prefixes = [_Prefix(workload, tenant, block_size, rng) for tenant in range(workload.tenants)]
    cumulated = list(accumulate(workload.shares()))
    found = []
    for number, at_s in enumerate(_arrivals(workload, rate_per_s, duration_s, rng)):
        tenant = bisect(cumulated, rng.random() * cumulated[-1])
        prefix = prefixes[tenant]
        turns = tuple(_turns(workload, prefix.tokens, rng))
        found.append(Conversation(number, at_s, tenant, prefix.tokens, turns, block_size, prefix.hashes))
    return found


class _Prefix:
    def __init__(self, workload: Workload, tenant: int, block_size: int, rng: Random) -> None:
        self.tokens = 0 if workload.prefix is None else workload.prefix.tokens(rng)
        self.hashes = tuple(b"t%d:%d" % (tenant, at) for at in range(self.tokens // block_size))


def _arrivals(workload: Workload, rate_per_s: float, duration_s: float, rng: Random) -> Iterator[float]:
    shape = 1 / workload.gaps_cv**2
    at_s = rng.gammavariate(shape, 1 / (shape * rate_per_s))
    while at_s < duration_s:
        yield at_s
        at_s += rng.gammavariate(shape, 1 / (shape * rate_per_s))


def _turns(workload: Workload, prefix_tokens: int, rng: Random) -> Iterator[Turn]:
    count = 1 if workload.turns is None else workload.turns.tokens(rng)
    history = prefix_tokens
    for _ in range(count):
        part = _part(workload, rng)
        history += part.prompt.tokens(rng)
        output_tokens = part.output.tokens(rng)
        yield Turn(history, output_tokens, 0.0 if workload.think_s is None else workload.think_s.draw(rng))
        history += output_tokens


def _part(workload: Workload, rng: Random) -> Part:
    at = rng.random()
    for part in workload.parts:
        at -= part.share
        if at < 0:
            return part
    return workload.parts[-1]
