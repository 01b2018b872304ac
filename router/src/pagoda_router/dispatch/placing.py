"""Gives waiting requests to workers: whose turn it is (queue.py), which variant, which worker (policy.py), and the submit itself.

The dispatcher calls it whenever something may fit that did not before. Lanes are the dispatcher's; decisions are the pure modules'.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from pagoda_router.admission.lane import Held, Lane, Pending
from pagoda_router.admission.waiting import Waiting
from pagoda_router.backends.base import BackendStream
from pagoda_router.dispatch.choosing import WorkerChooser
from pagoda_router.dispatch.growing import GrowingChains
from pagoda_router.drafting.drafting import Drafting
from pagoda_router.errors import ContextTooLong
from pagoda_router.fleet import Fleet
from pagoda_router.generation import Generation, ModelName, RequestClass, WorkerId
from pagoda_router.metrics.requests import RouterMetrics
from pagoda_router.placement.chains import GrowingChain, PrefixChains
from pagoda_router.placement.facts import RequestFacts, WorkerView
from pagoda_router.placement.policy import POLICY, Refusal, choose_variant
from pagoda_router.placement.prediction import predict, usual_rates
from pagoda_router.placement.prefixes import PrefixChain

LONG_PROMPT_IDS = 16_384
"""Half a millisecond of hashing, where all of it may be known."""
MOST_WISHED = 2**29
"""Of a client's own priority, on a worker: leaves a place below all of them."""


class Placer:
    def __init__(
        self,
        fleet: Fleet,
        metrics: RouterMetrics,
        chooser: WorkerChooser,
        drafting: Drafting,
        promote_after_s: float,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._chooser = chooser
        self._drafting = drafting
        self._promote_after_s = promote_after_s
        self._clock = clock
        self._rng = rng
        self._chains = PrefixChains()
        self._growing = GrowingChains()
        self._full: set[tuple[str, RequestClass]] = set()
        """Groups whose batches had no place for a class, within one look at the queue: what waits behind need not be tried."""

    def place_waiting(self, model: ModelName, lane: Lane) -> None:
        """All that fit, in turn."""
        if not (len(lane.room) or lane.cold):
            return
        self._start_those_that_fit(lane)
        if (len(lane.room) or lane.cold) and self._review(model, lane):
            self._start_those_that_fit(lane)

    def group_of(self, request: Held) -> str:
        """The variant it waits for: the only one, the one it insists on, or one drawn by weight; empty while none can answer."""
        group = self._fleet.only_variant(request.model) if request.variant is None else request.variant
        return self._draw(request.model, self._fleet.routable_variants(request.model)) if group is None else group

    def views(self, request: Pending) -> list[WorkerView]:
        """Of the workers that may run it."""
        return [link.view() for link in self._fleet.links(request.model) if request.variant in (None, link.endpoint.variant)]

    def can_resume(self, request: Pending) -> bool:
        """Some worker of the variant that had it, here or to come, goes on with what another began."""
        links = self._fleet.links(request.model)
        return any(link.can_resume and request.served_variant in (None, link.endpoint.variant) for link in links)

    def cached_tokens(self, request: Held) -> int:
        """Of its prompt, at the worker that has most of it."""
        if not isinstance(request, Pending):
            return 0
        chain = self._chain(request)
        links = self._fleet.links(request.model)
        return max((link.view(None, chain).cached_tokens for link in links if request.variant in (None, link.endpoint.variant)), default=0)

    def soonest_s(self, request: Held) -> float | None:
        """Until its first token at the quickest of the workers that may run it. None: its prompt is not known, or one that might be
        quicker has measured nothing, or sleeps, and is woken also by those in a hurry."""
        if not isinstance(request, Pending):
            return None
        chain = self._chain(request)
        links = [link for link in self._fleet.links(request.model) if request.variant in (None, link.endpoint.variant)]
        views = [view for link in links if (view := link.view(None, chain)).routable]
        if not views or any(view.sleeps or not view.prefill_tokens_per_s for view in views):
            return None
        facts, usual = RequestFacts(request.cost), usual_rates(views)
        return min(predict(facts, view, usual).ttft_ms for view in views) / 1000

    async def hashed(self, generation: Generation) -> PrefixChain | None:
        """Of a long prompt, with turns for others: so that placing it holds the event loop for no longer than any other. Else None."""
        if len(generation.prompt_ids) < LONG_PROMPT_IDS:
            return None
        chain = self._begun(generation)
        for _ in self._grown_as_far_as_known(chain, generation.model):
            await asyncio.sleep(0)
        return chain

    def _begun(self, generation: Generation) -> PrefixChain:
        context = [*generation.prompt_ids, *generation.resume_ids] if generation.resume_ids else generation.prompt_ids
        size, adapter = self._fleet.block_size(generation.model), generation.adapter
        label = self._fleet.adapters.label(generation.model, adapter) if adapter else ""
        return self._chains.begun(context, size, generation.cache_salt, tenant=generation.tenant, adapter=adapter, label=label)

    def _chain(self, request: Pending) -> PrefixChain:
        """As good as whole, until the event loop goes on."""
        chain = request.chain
        if chain is None or chain.block_size != self._fleet.block_size(request.model):  # hashed before any worker had told its size
            chain = request.chain = self._begun(request.generation)
        for _ in self._grown_as_far_as_known(chain, request.model):
            pass
        return chain

    def _grown_as_far_as_known(self, chain: PrefixChain, model: ModelName) -> Iterator[None]:
        """Until it ends in a block that no worker has, or is expected to have once the chains of requests on their way are whole. A slice
        at a time."""
        while True:
            if (other := self._growing.needed_by(chain)) is not None:
                other.grow()
            elif isinstance(chain, GrowingChain) and not chain.is_whole and self._is_known(chain, model):
                chain.grow()
            else:
                return
            yield

    def _is_known(self, chain: PrefixChain, model: ModelName) -> bool:
        """To its end, at some worker."""
        tokens = len(chain.hashes) * chain.block_size
        return any(link.view(None, chain).cached_tokens == tokens for link in self._fleet.links(model))

    def _start_those_that_fit(self, lane: Lane) -> None:
        self._full.clear()
        lane.room.start_those_that_fit(self._start, self._clock())

    def _review(self, model: ModelName, lane: Lane) -> bool:
        """Which groups wait for a worker to come, and which have one now; True when a request may go where it could not before."""
        routable, now_s = self._fleet.routable_variants(model), self._clock()
        only = self._fleet.only_variant(model)
        if routable != lane.routable:
            lane.routable = routable
            for waiting in [waiting for waiting in lane.room if waiting.request.variant is None and waiting.group not in routable]:
                group = only if only is not None else self._draw(model, routable)
                if group != waiting.group:
                    lane.room.regroup(waiting, group)
                    waiting.request.patient_from_s = now_s
        return lane.note_groups(routable, now_s)

    def _draw(self, model: ModelName, routable: frozenset[str]) -> str:
        """The variant that takes the next request; empty while none can."""
        found = self._fleet.find(model)
        return "" if found is None else choose_variant(found.variants, routable, self._rng) or ""

    def _start(self, waiting: Waiting[Held]) -> bool:
        """Submits the request to the best worker; True when it needs no place any more, and its tenant pays `service_tokens`."""
        request = waiting.request
        if request.place.done():
            waiting.service_tokens = 0
            return True
        if not isinstance(request, Pending):
            if self._fleet.text(request.model, request.variant) is None:
                return False
            request.place.set_result(None)
            return True
        line = (waiting.group, request.request_class)
        if line in self._full:
            return False
        found = self._submit(request, waiting.group, request.avoid)
        if isinstance(found, Refusal):
            if found.why == "too_large":
                request.place.set_exception(ContextTooLong(f"{found.message}: shorten the prompt", param="messages"))
                waiting.service_tokens = 0
                return True
            if found.why == "batches_full" and not request.generation.resume_ids:
                self._full.add(line)
            return False
        stream, waiting.service_tokens = found
        request.place.set_result(stream)
        return True

    def place_at_once(self, request: Held) -> BackendStream | None:
        """One that came while nobody waited, without a place in line. None: it has to take one."""
        room = request.lane.room
        if len(room) or request.lane.cold or not isinstance(request, Pending):
            return None
        found = self._submit(request, self.group_of(request), request.avoid)
        if isinstance(found, Refusal):
            return None
        stream, service_tokens = found
        room.served_alone(request.tenant, request.request_class, service_tokens)
        return stream

    def place_once_more(self, request: Pending) -> BackendStream | None:
        """The same request to a second worker, of the variant that has it already; None: no other is half empty, or somebody waits. Its
        tenant pays for that too, until the loser's settlement says what it came to."""
        assert request.served_variant is not None
        taken = {WorkerId(attempt.worker) for attempt in request.generation.trace.attempts}
        views = [view for view in self.views(request) if view.routable and view.variant == request.served_variant]
        busy = {view.worker for view in views if view.running + view.waiting >= view.max_running / 2}
        if len(request.lane.room) or not any(view.worker not in taken | busy for view in views):
            return None
        found = self._submit(request, request.served_variant, taken | busy, may_be_avoided=False)
        if isinstance(found, Refusal):
            return None
        stream, service_tokens = found
        request.lane.room.settle(request.tenant, request.request_class, -service_tokens)
        return stream

    def _submit(
        self, request: Pending, group: str, avoid: set[WorkerId], *, may_be_avoided: bool = True
    ) -> tuple[BackendStream, int] | Refusal:
        """To the best worker of the variant; with it what its tenant pays. `may_be_avoided`: one of `avoid`, where there is no other."""
        now_s, generation = self._clock(), request.generation
        links = self._fleet.group(request.model, group, relays=generation.relay is not None)
        if not may_be_avoided:
            links, avoid = [link for link in links if link.worker not in avoid], set()
        if generation.resume_ids:
            links = [link for link in links if link.can_resume]
        chain = self._chain(request)
        model = self._fleet.find(request.model)
        policy = POLICY if model is None else model.policy
        choice = self._chooser.choose(links, request.cost, chain, now_s, avoid=avoid, policy=policy)
        if isinstance(choice, Refusal):
            return choice
        found = choice.placement
        link = next(link for link in links if link.worker == found.worker)
        cost = request.cost.with_cached(found.cached_tokens, link.block_size or self._fleet.block_size(request.model))
        if generation.deadline_s is not None:
            generation = replace(generation, deadline_s=max(0.001, generation.deadline_s - (now_s - request.arrived_s)))
        if (priority := self._priority_there(request, now_s)) != generation.priority:
            generation = replace(generation, priority=priority)
        generation = self._drafting.prepared(generation, model)
        stream = link.submit(generation, cost, found.reserved_tokens, chain)
        self._growing.add(chain)
        self._drafting.accompany(stream, generation, model)
        self._chooser.placed(choice, generation, stream.times, now_s)
        request.served_variant = group
        request.note_attempt(found, now_s, stream.times)
        self._metrics.placed(request.model, request.request_class, now_s - request.arrived_s, found)
        return stream, cost.service_tokens

    def _priority_there(self, request: Pending, now_s: float) -> int:
        """A worker's order goes over all tenants: so what a client wishes for itself counts there only where all are one tenant. Throughput
        requests come last, and make room, unless they have waited long enough to be promoted."""
        wish = 0 if request.tenant else max(-MOST_WISHED, min(MOST_WISHED, request.generation.priority))
        is_behind = request.request_class is RequestClass.THROUGHPUT and now_s - request.arrived_s < self._promote_after_s
        return wish - 2 * MOST_WISHED if is_behind else wish
