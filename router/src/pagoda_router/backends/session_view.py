"""What placement sees of one of our own workers: made anew when the session said or did something, else only what is the request's own.

Owns the link's WorkerViews. The link says `changed` at every message, submit and turn of its life; a look in between costs a few lookups.
"""

from typing import Any

from pagoda_router.admission.credits import Price
from pagoda_router.backends.session import OpenSession
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.generation import RequestClass, WorkerId
from pagoda_router.placement.facts import WorkerView, queued_prefill_tokens
from pagoda_router.placement.prefixes import PrefixChain


class SessionView:
    def __init__(self, worker: WorkerId, endpoint: Endpoint, *, is_elsewhere: bool) -> None:
        self._away, self._here = views_of(worker, endpoint, is_elsewhere=is_elsewhere)
        self.current: WorkerView | None = None
        """None: something changed, and it is to be told with one of the next two."""

    def changed(self) -> None:
        """Something that a view tells may be otherwise now."""
        self.current = None

    def away(self, reason: str) -> WorkerView:
        """It takes no requests."""
        self._away.reason = reason
        self.current = self._away
        return self._away

    def routable(self, session: OpenSession, description: Any) -> WorkerView:
        """`description`: the wire's, the worker's last."""
        state, requests, knowledge = session.state, session.requests, session.knowledge
        view, ledger, running = self._here, requests.ledger, state.num_running
        view.capacity_tokens, view.available_tokens = ledger.capacity_tokens, ledger.available_tokens
        view.reserved_tokens, view.used_tokens = ledger.outstanding_tokens, max(0, state.kv_capacity_tokens - state.kv_free_tokens)
        view.queued_prefill_tokens = queued_prefill_tokens(
            state.queued_prefill_tokens,
            requests.unbegun_prompt_tokens,
            requests.unbegun_latest_first(),
            requests.sequences - running - state.num_waiting,
        )
        view.running = running
        view.waiting = max(state.num_waiting, requests.sequences - running, 0)
        view.max_running = max(1, description.max_running)
        view.prefill_tokens_per_s = knowledge.rates.prefill_tokens_per_s or description.prefill_tokens_per_s
        view.prefill_step_ms = knowledge.rates.prefill_step_ms
        view.decode_step_ms = knowledge.step_ms(running)
        view.decode_step_ms_per_sequence = knowledge.step_ms_per_sequence(running)
        view.sleeps = state.sleep_level > 0
        view.decode_tokens_per_s = description.decode_tokens_per_s
        self.current = view
        return view


def views_of(worker: WorkerId, endpoint: Endpoint, *, is_elsewhere: bool) -> tuple[WorkerView, WorkerView]:
    """Those of a link: while it takes no requests, and while it does."""
    away = WorkerView(worker=worker, routable=False, variant=endpoint.variant, template=endpoint.template)
    here = WorkerView(worker=worker, routable=True, variant=endpoint.variant, template=endpoint.template, is_elsewhere=is_elsewhere)
    return away, here


def for_request(view: WorkerView, cost: Price | None, chain: PrefixChain, session: OpenSession) -> WorkerView:
    """The same view, with what is one request's own and what goes by the clock."""
    requests, knowledge = session.requests, session.knowledge
    if chain.hashes:
        view.cached_tokens, held_tokens = knowledge.cached_tokens(chain), knowledge.held_tokens(chain)
    else:
        view.cached_tokens = held_tokens = 0
    # The worker interrupts throughput requests for others: these find room where it has none for their like.
    yielding = 0 if cost is None or cost.request_class is RequestClass.THROUGHPUT else requests.yielding
    view.batch_full = not requests.depth.has_room(requests.sequences, view.decode_step_ms, yielding)
    adapter = session.adapters.get(chain.adapter) if chain.adapter else None
    view.adapter_to_copy = adapter is not None and not adapter.resident
    if cost is None or view.batch_full or (chain.adapter and adapter is None):
        view.reservable_tokens = None
    else:
        # Whole blocks that another request has paid for and holds are not paid again. Those that only the cache holds are: they are free
        # for anybody until this request takes them. When the other one ends, the worker's own count of what is free mends the grants.
        shared = min(held_tokens, (cost.prompt_tokens - 1) // chain.block_size * chain.block_size) if held_tokens else 0
        view.reservable_tokens = requests.ledger.reservation_for(cost, shared)
    view.silent_s = knowledge.silent_s() if len(requests) else 0.0
    return view
