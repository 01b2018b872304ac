"""Speculation across workers: which requests get a companion, which worker drafts for them, and when a model had better do without.

Owned by the dispatcher, asked by placing for every request that goes to a worker. Links do the talking; what is decided within one request
is companion.py's.
"""

from dataclasses import dataclass, replace
from random import Random

from pagoda_router.admission.credits import price
from pagoda_router.backends.base import BackendStream, WorkerLink
from pagoda_router.backends.request_stream import RequestStream
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.drafting.companion import MOST_AHEAD, Companion
from pagoda_router.drafting.guesses import Stop
from pagoda_router.fleet import Fleet
from pagoda_router.generation import Generation, ModelName, WorkerId
from pagoda_router.metrics.requests import RouterMetrics

FEWEST_TOKENS = 8
"""An answer of fewer is over before the first guess has come."""
PATIENCE = 3
"""Requests in a row that gave up for want of gain, before the model does without for a while."""
FIRST_PAUSE, LONGEST_PAUSE = 8, 256
"""Requests that go without, then; twice as many each time the next one gives up too."""
WITHOUT_GAIN = frozenset({Stop.ACCEPTANCE, Stop.LATE})


@dataclass(slots=True)
class Fortune:
    """How drafting went lately for one model."""

    failures: int = 0
    pause: int = FIRST_PAUSE
    left: int = 0
    """Requests of the present pause still to come."""

    def may_begin(self) -> bool:
        if self.left:
            self.left -= 1
            return False
        return True

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= PATIENCE:
            self.left, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE)

    def paid(self) -> None:
        self.failures, self.pause = 0, FIRST_PAUSE


class Drafting:
    def __init__(self, fleet: Fleet, metrics: RouterMetrics, rng: Random) -> None:
        self._fleet = fleet
        self._metrics = metrics
        self._rng = rng
        self._fortunes: dict[ModelName, Fortune] = {}

    # ------------------------------------------------------------ placing's

    def prepared(self, generation: Generation, model: ModelObject | None) -> Generation:
        """With a seed where it has none: two workers sample the same token only from the same noise. Any seed is as good as a worker's."""
        if model is None or model.draft_model is None or generation.sampling.seed is not None or not generation.sampling.temperature:
            return generation
        return replace(generation, sampling=replace(generation.sampling, seed=self._rng.getrandbits(63)))

    def accompany(self, stream: BackendStream, generation: Generation, model: ModelObject | None) -> None:
        """`stream`: just submitted, of `generation` as it was prepared."""
        if model is None or model.draft_model is None or not isinstance(stream, RequestStream) or not stream.takes_drafts:
            return
        if generation.n > 1 or generation.embedding or not generation.switches.speculation:
            return
        if generation.max_tokens - len(generation.resume_ids) < FEWEST_TOKENS:
            return
        if not self._fortunes.setdefault(model.name, Fortune()).may_begin():
            self._metrics.drafting_stopped(model.name, Stop.PAUSED)
        elif not self._share_tokens(model.name, model.draft_model):
            self._metrics.drafting_stopped(model.name, Stop.OTHER_TOKENIZER)
        else:
            Companion(self, generation, model.draft_model, stream).begin()

    def _share_tokens(self, model: ModelName, draft_model: ModelName) -> bool:
        """As far as both are described."""
        own, drafters = self._fleet.text(model), self._fleet.text(draft_model)
        return own is None or drafters is None or own.tokenizer_file == drafters.tokenizer_file

    # ------------------------------------------------------------ companions'

    def open_branch(self, branch: Generation, avoid: frozenset[WorkerId], prefer: WorkerId | None) -> RequestStream | Stop:
        links = [link for link in self._fleet.links(branch.model) if link.worker not in avoid and link.routable]
        links = [link for link in links if not link.view().sleeps and not link.endpoint.relays]
        if not links:
            return Stop.NO_DRAFTER
        chosen = min(links, key=lambda link: (link.worker != prefer, link.in_flight))
        return self._opened_on(chosen, branch)

    def _opened_on(self, link: WorkerLink, branch: Generation) -> RequestStream | Stop:
        if link.max_model_len is not None:
            most = link.max_model_len - len(branch.prompt_ids)
            branch = replace(branch, max_tokens=min(branch.max_tokens, most), min_tokens=min(branch.min_tokens, max(0, most)))
            if len(branch.resume_ids) >= branch.max_tokens:
                return Stop.CONTEXT
        cost = price(branch, MOST_AHEAD, link.block_size or self._fleet.block_size(branch.model))
        reserved_tokens = link.view(cost).reservable_tokens
        if reserved_tokens is None:
            return Stop.NO_ROOM
        stream = link.submit(branch, cost, reserved_tokens)
        return stream if isinstance(stream, RequestStream) else Stop.NO_DRAFTER

    def is_on(self, generation: Generation) -> bool:
        model = self._fleet.find(generation.model)
        return model is not None and model.draft_model is not None

    def drafted(self, generation: Generation, tokens: int) -> None:
        self._metrics.drafted(generation.model, tokens)

    def verified(self, generation: Generation, drafts: int, accepted: int) -> None:
        self._metrics.drafts_verified(generation.model, drafts, accepted)

    def stopped(self, generation: Generation, reason: Stop) -> None:
        self._metrics.drafting_stopped(generation.model, reason)
        if reason in WITHOUT_GAIN:
            self._fortunes[generation.model].failed()

    def paid(self, generation: Generation) -> None:
        self._fortunes[generation.model].paid()
