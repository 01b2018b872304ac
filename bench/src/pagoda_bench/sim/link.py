"""The router's end of one simulated worker's session: real credits, known prefixes and learned rates; what it knows comes late, as events.

Stands where backends/pagoda.py stands in the router, and makes the same view of what it was told. Called by the router's side (router.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from pagoda_bench.sim.worker import SimWorker
from pagoda_router.admission.credits import CreditLedger, Price
from pagoda_router.admission.depth import BatchDepth
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import WorkerId
from pagoda_router.placement.facts import WorkerView, queued_prefill_tokens
from pagoda_router.placement.prefixes import NO_CHAIN, Expectation, KnownPrefixes, PrefixChain
from pagoda_router.placement.rates import WorkerRates


@dataclass(frozen=True, slots=True)
class State:
    """What a worker says of itself, by its latest message."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_step_ms: float = 0.0
    prefill_step_ms: float = 0.0
    prefill_token_ms: float = 0.0


def state_of(worker: SimWorker) -> State:
    return State(
        *worker.told,
        worker.meter.prefill_tokens_per_s,
        worker.meter.decode_step_ms,
        *worker.meter.prefill_cost,
    )


@dataclass(slots=True)
class _Sent:
    """A request of this router's that the worker has not ended."""

    unbegun_tokens: int
    expectation: Expectation


@dataclass(slots=True, eq=False)
class SimLink:
    worker: WorkerId
    number: int
    endpoint: Endpoint
    ledger: CreditLedger
    prefixes: KnownPrefixes
    max_running: int
    depth: BatchDepth
    rates: WorkerRates = field(default_factory=WorkerRates)
    state: State = field(default_factory=State)
    is_up: bool = True
    latest_word_s: Callable[[float], float] = field(default=lambda now_s: now_s)
    """When the worker sent its latest frame."""
    idle_until_s: float = 0.0
    """When its first request after a pause went out: silence counts from there."""
    now_s: float = 0.0
    """Of the loop; set before every view."""
    sent: dict[int, _Sent] = field(default_factory=dict)
    unbegun_tokens: int = 0
    returned_tokens: int = 0
    grants: int = 0

    def view(self, cost: Price | None = None, chain: PrefixChain = NO_CHAIN) -> WorkerView:
        if not self.is_up:
            return WorkerView(worker=self.worker, routable=False, reason="the worker is gone")
        state, ledger = self.state, self.ledger
        cached_tokens = self.prefixes.cached_tokens(chain)
        step_ms = self.rates.step_ms(state.running)
        is_full = not self.depth.has_room(len(self.sent), step_ms)
        return WorkerView(
            worker=self.worker,
            routable=True,
            capacity_tokens=ledger.capacity_tokens,
            available_tokens=ledger.available_tokens,
            reserved_tokens=ledger.outstanding_tokens,
            reservable_tokens=None if cost is None or is_full else ledger.reservation_for(cost, self._shared_tokens(cost, chain)),
            batch_full=is_full,
            cached_tokens=cached_tokens,
            queued_prefill_tokens=queued_prefill_tokens(
                state.queued_prefill_tokens,
                self.unbegun_tokens,
                ((1, sent.unbegun_tokens) for sent in reversed(self.sent.values()) if sent.unbegun_tokens),
                len(self.sent) - state.running - state.waiting,
            ),
            running=state.running,
            waiting=max(state.waiting, len(self.sent) - state.running, 0),
            max_running=self.max_running,
            prefill_tokens_per_s=self.rates.prefill_tokens_per_s,
            prefill_step_ms=self.rates.prefill_step_ms,
            decode_step_ms=step_ms,
            decode_step_ms_per_sequence=self.rates.steps.per_sequence_ms,
            silent_s=self.now_s - max(self.idle_until_s, self.latest_word_s(self.now_s)) if self.sent else 0.0,
        )

    def _shared_tokens(self, cost: Price, chain: PrefixChain) -> int:
        """As PagodaLink: of the price, whole blocks that another request has paid for and holds."""
        held_tokens = self.prefixes.held_tokens(chain)
        return min(held_tokens, (cost.prompt_tokens - 1) // chain.block_size * chain.block_size) if held_tokens else 0

    def submitted(self, number: int, cost: Price, reserved_tokens: int, chain: PrefixChain, now_s: float) -> None:
        if not self.sent:
            self.idle_until_s = now_s
        uncached_tokens = max(1, cost.prompt_tokens - self.prefixes.cached_tokens(chain))
        self.ledger.spend(number, reserved_tokens)
        self.sent[number] = _Sent(uncached_tokens, self.prefixes.expect(chain))
        self.unbegun_tokens += uncached_tokens

    def begun(self, number: int) -> None:
        sent = self.sent[number]
        sent.expectation.begun()
        self.unbegun_tokens -= sent.unbegun_tokens
        sent.unbegun_tokens = 0

    def over(self, number: int, output_tokens: int | None) -> int:
        """Its credits come back with the next grant. Returns what it had reserved. `output_tokens` None: it was lost."""
        if output_tokens is not None:
            self.depth.ended(output_tokens)
        sent = self.sent.pop(number)
        self.unbegun_tokens -= sent.unbegun_tokens
        sent.expectation.over()
        reserved_tokens = self.ledger.settle(number)
        self.returned_tokens += reserved_tokens
        self.grant()
        return reserved_tokens

    def grant(self) -> None:
        """As the worker does for the only router there is: everything that came back, and the whole cache."""
        self.grants += 1
        self.ledger.grant(self.ledger.epoch, self.grants, self.returned_tokens + self.ledger.capacity_tokens)

    def heard(self, state: State) -> None:
        self.state = state
        self.rates.told(
            state.prefill_tokens_per_s,
            state.decode_step_ms,
            prefill_step_ms=state.prefill_step_ms,
            prefill_token_ms=state.prefill_token_ms,
        )
