"""What a request costs in KV tokens, and who holds how many of them. Pure: no clock, no I/O.

`OutputLengths` predicts, `price` turns prompt and prediction into blocks, `CreditLedger` keeps one worker's promise: the sum of
what is reserved never exceeds what the worker granted, nor its capacity. Called by the dispatcher and by a worker's link.

    granted_total (from the worker, cumulative in one epoch)
    |-- spent_total: every reservation submitted in the epoch ----------------|-- available --|
                     |-- returned by the worker --|-- outstanding: in flight -|
"""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import replace

from pagoda_router.generation import Generation, RequestClass
from pagoda_router.records import record

FULLY_RESERVED_TOKENS = 128
"""An explicit limit this small is reserved whole: being wrong about it would cost more than it saves."""
PRIOR_OUTPUT_TOKENS = 256
"""Predicted before a model has answered anything."""
QUANTILE = 0.75
WINDOW = 256
"""Outputs remembered per model; a shift of traffic is forgotten after as many requests."""
FEWEST_SAMPLES = 16
"""Answers of a tenant, or of a class, before their quantile is believed rather than the wider one."""
MOST_SENDERS = 512
"""Tenants times classes remembered per model, the latest; each costs at most 15 KB."""
OUTPUT_WEIGHT = 2
"""Service in fairness: an output token counts as two of prompt, as in VTC (Sheng et al., 2024), section 4."""


class OutputHistory:
    """The lengths of the latest answers of one kind, and their upper quartile."""

    def __init__(self) -> None:
        self._latest: deque[int] = deque()
        self._sorted: list[int] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def observe(self, output_tokens: int) -> None:
        """One sequence that ended by itself. Cancelled ones say nothing about length and are not told."""
        if len(self._latest) == WINDOW:
            oldest = self._latest.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._latest.append(output_tokens)
        insort(self._sorted, output_tokens)

    def predict(self, generation: Generation) -> int:
        """Output tokens of one sequence, at least 1 and at most its limit."""
        limit = max(1, generation.max_tokens - len(generation.resume_ids))
        if generation.ignore_eos or (generation.explicit_max_tokens and limit <= FULLY_RESERVED_TOKENS):
            return limit
        usual = self._sorted[int(QUANTILE * (len(self._sorted) - 1))] if self._sorted else PRIOR_OUTPUT_TOKENS
        return min(limit, max(1, usual, generation.min_tokens))


class OutputLengths:
    """One model's answers: by tenant and class, by class, and all. The narrowest with enough samples predicts."""

    def __init__(self, most_senders: int = MOST_SENDERS) -> None:
        self._most_senders = most_senders
        self._all = OutputHistory()
        self._by_class = {request_class: OutputHistory() for request_class in RequestClass}
        self._by_sender: OrderedDict[tuple[str, RequestClass], OutputHistory] = OrderedDict()

    def observe(self, tenant: str, request_class: RequestClass, output_tokens: int) -> None:
        sender = (tenant, request_class)
        own = self._by_sender.get(sender)
        if own is None:
            own = self._by_sender[sender] = OutputHistory()
            if len(self._by_sender) > self._most_senders:
                self._by_sender.popitem(last=False)
        self._by_sender.move_to_end(sender)
        for history in (own, self._by_class[request_class], self._all):
            history.observe(output_tokens)

    def predict(self, generation: Generation) -> int:
        """As OutputHistory does, by the narrowest history that knows enough; the prior when none knows anything."""
        own = self._by_sender.get((generation.tenant, generation.request_class))
        of_class = self._by_class[generation.request_class]
        for history in (own, of_class):
            if history is not None and len(history) >= FEWEST_SAMPLES:
                return history.predict(generation)
        return self._all.predict(generation)


@record(frozen=True, slots=True)
class Price:
    prompt_tokens: int
    output_tokens: int
    """Predicted, per sequence."""
    kv_tokens: int
    """Whole blocks for prompt and output of all sequences, without those that are expected to be there: what is reserved."""
    least_kv_tokens: int
    """Whole blocks for the prompt and one token: a worker with less can never run it."""
    sequences: int = 1
    cached_tokens: int = 0
    """Whole blocks of the prompt, expected in the worker's prefix cache."""
    request_class: RequestClass = RequestClass.LATENCY

    @property
    def service_tokens(self) -> int:
        """Predicted work, in the weights by which tenants are kept equal."""
        return service_tokens(self.prompt_tokens, self.cached_tokens, self.sequences * self.output_tokens)

    def with_cached(self, cached_tokens: int, block_size: int) -> "Price":
        """The price at a worker that has so many of the prompt's tokens: of whole blocks, and never the last token, which is computed."""
        whole = min(cached_tokens, max(0, self.prompt_tokens - 1)) // block_size * block_size
        return (
            self
            if whole == self.cached_tokens
            else replace(self, kv_tokens=self.kv_tokens + self.cached_tokens - whole, cached_tokens=whole)
        )


def price(generation: Generation, predicted_output_tokens: int, block_size: int, cached_tokens: int = 0) -> Price:
    """The n sequences share the prompt's full blocks; each copies the part-filled one and owns what follows."""
    prompt_tokens = len(generation.prompt_ids) + len(generation.resume_ids)
    shared = prompt_tokens // block_size * block_size
    own = round_up(prompt_tokens - shared + predicted_output_tokens, block_size)
    whole = Price(
        prompt_tokens,
        predicted_output_tokens,
        kv_tokens=shared + generation.n * own,
        least_kv_tokens=round_up(prompt_tokens + 1, block_size),
        sequences=generation.n,
        request_class=generation.request_class,
    )
    return whole.with_cached(cached_tokens, block_size) if cached_tokens else whole


def service_tokens(prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
    """`output_tokens`: of all sequences together."""
    return prompt_tokens - cached_tokens + OUTPUT_WEIGHT * output_tokens


def used_kv_tokens(prompt_tokens: int, output_tokens: Iterable[int], block_size: int, cached_tokens: int = 0) -> int:
    """What sequences of these lengths really took beyond what was cached, in the same whole blocks; 0 for none."""
    shared = prompt_tokens // block_size * block_size
    own = [round_up(prompt_tokens - shared + tokens, block_size) for tokens in output_tokens]
    return shared - min(shared, cached_tokens // block_size * block_size) + sum(own) if own else 0


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

    def reservation_for(self, cost: Price, shared_tokens: int = 0) -> int | None:
        """Tokens to reserve now, or None: wait. A request dearer than the whole share runs alone on all of it. `shared_tokens`: in blocks
        that another request holds there and has paid for."""
        wanted = min(cost.kv_tokens - shared_tokens, self.share_tokens)
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
