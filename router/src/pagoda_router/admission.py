"""What a request costs in KV tokens, and who holds how many of them. Pure: no clock, no I/O.

`OutputHistory` predicts, `price` turns prompt and prediction into blocks, `CreditLedger` keeps one worker's promise: the sum of
what is reserved never exceeds what the worker granted, nor its capacity. Called by the dispatcher and by a worker's link.

    granted_total (from the worker, cumulative in one epoch)
    |-- spent_total: every reservation submitted in the epoch ----------------|-- available --|
                     |-- returned by the worker --|-- outstanding: in flight -|
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from pagoda_router.generation import Generation

FULLY_RESERVED_TOKENS = 128
"""An explicit limit this small is reserved whole: being wrong about it would cost more than it saves."""
PRIOR_OUTPUT_TOKENS = 256
"""Predicted before a model has answered anything."""
QUANTILE = 0.75
WINDOW = 256
"""Outputs remembered per model; a shift of traffic is forgotten after as many requests."""


class OutputHistory:
    """The lengths of one model's latest answers, and their upper quartile."""

    def __init__(self) -> None:
        self._latest: deque[int] = deque()
        self._sorted: list[int] = []

    def observe(self, output_tokens: int) -> None:
        """One sequence that ended by itself. Cancelled ones say nothing about length and are not told."""
        if len(self._latest) == WINDOW:
            oldest = self._latest.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._latest.append(output_tokens)
        insort(self._sorted, output_tokens)

    def predict(self, generation: Generation) -> int:
        """Output tokens of one sequence, at least 1 and at most its limit."""
        limit = max(1, generation.max_tokens)
        if generation.ignore_eos or (generation.explicit_max_tokens and limit <= FULLY_RESERVED_TOKENS):
            return limit
        usual = self._sorted[int(QUANTILE * (len(self._sorted) - 1))] if self._sorted else PRIOR_OUTPUT_TOKENS
        return min(limit, max(1, usual, generation.min_tokens))


@dataclass(frozen=True, slots=True)
class Price:
    prompt_tokens: int
    output_tokens: int
    """Predicted, per sequence."""
    kv_tokens: int
    """Whole blocks for prompt and output of all sequences: what is reserved."""
    least_kv_tokens: int
    """Whole blocks for the prompt and one token: a worker with less can never run it."""


def price(generation: Generation, predicted_output_tokens: int, block_size: int) -> Price:
    """The n sequences share the prompt's full blocks; each copies the part-filled one and owns what follows."""
    prompt_tokens = len(generation.prompt_ids)
    shared = prompt_tokens // block_size * block_size
    own = round_up(prompt_tokens - shared + predicted_output_tokens, block_size)
    return Price(prompt_tokens, predicted_output_tokens, shared + generation.n * own, round_up(prompt_tokens + 1, block_size))


def used_kv_tokens(prompt_tokens: int, output_tokens: Iterable[int], block_size: int) -> int:
    """What sequences of these lengths really took, in the same whole blocks; 0 for none."""
    shared = prompt_tokens // block_size * block_size
    own = [round_up(prompt_tokens - shared + tokens, block_size) for tokens in output_tokens]
    return shared + sum(own) if own else 0


def round_up(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size) * block_size


class CreditLedger:
    """One worker's KV credits for one model in one session. A new session starts a new one: the worker forgets the old one's requests."""

    def __init__(self, epoch: int, capacity_tokens: int) -> None:
        self.epoch = epoch
        self.capacity_tokens = capacity_tokens
        """Whole KV cache of the worker; grants are a part of it when several routers share it."""
        self._granted_total = 0
        self._grant_seq = -1
        self._spent_total = 0
        self._outstanding: dict[Hashable, int] = {}
        self.outstanding_tokens = 0

    def grant(self, epoch: int, seq: int, granted_total: int) -> bool:
        """False: of another epoch or older than one already seen, and ignored."""
        if epoch != self.epoch or seq <= self._grant_seq:
            return False
        self._grant_seq = seq
        self._granted_total = granted_total
        return True

    @property
    def available_tokens(self) -> int:
        """Negative while the worker takes back what another router needs."""
        return min(self._granted_total - self._spent_total, self.capacity_tokens - self.outstanding_tokens)

    @property
    def share_tokens(self) -> int:
        """The most that one request can ever get: what would be available with nothing in flight."""
        return min(self._granted_total - self._spent_total + self.outstanding_tokens, self.capacity_tokens)

    def reservation_for(self, cost: Price) -> int | None:
        """Tokens to reserve now, or None: wait. A request dearer than the whole share runs alone on all of it."""
        wanted = min(cost.kv_tokens, self.share_tokens)
        return wanted if 0 < wanted <= self.available_tokens else None

    def spend(self, request: Hashable, tokens: int) -> None:
        if tokens > self.available_tokens:
            raise AssertionError(f"{tokens} KV tokens reserved with {self.available_tokens} available")
        if request in self._outstanding:
            raise AssertionError(f"request {request} has a reservation already")
        self._outstanding[request] = tokens
        self.outstanding_tokens += tokens
        self._spent_total += tokens

    def settle(self, request: Hashable) -> int:
        """The request is over on the worker; its credits come back with the next grant. Returns what it held, 0 when already settled."""
        tokens = self._outstanding.pop(request, 0)
        self.outstanding_tokens -= tokens
        return tokens
