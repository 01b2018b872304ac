"""What the router's inside asks of a backend, whatever speaks behind it: one link per worker, one stream per running request.

Knows no wire. fleet.py owns links, the dispatcher submits on them; pagoda.py implements both protocols for our own workers, openai_http.py
and openai_stream.py for other people's servers.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal, Protocol

from pagoda_router.adapters import LoadedAdapter
from pagoda_router.admission.credits import Price
from pagoda_router.discovery.snapshot import Endpoint
from pagoda_router.errors import RouterError
from pagoda_router.generation import EndReason, Event, Generation, ModelName, RequestClass, Take, TakeRelayed, WorkerId
from pagoda_router.placement.facts import WorkerView
from pagoda_router.placement.prefixes import NO_CHAIN, PrefixChain
from pagoda_router.records import record
from pagoda_router.tracing.record import WorkerTimes


class RefusedByWorker(Exception):
    """A submit that never became a request. It never ran, so another worker may be asked unless `error` says whose fault it is."""

    def __init__(self, message: str, error: RouterError | None = None, *, overloaded: bool = False, passed_credits: bool = False) -> None:
        super().__init__(message)
        self.overloaded = overloaded
        self.passed_credits = passed_credits
        """Its credits went to another router while the submit was under way; that they shrank has been heard before this."""
        self.error = error
        """What the client gets at once; None: worth another worker or another moment."""


Failure = Literal["worker_lost", "worker_drained", "engine_error", "refused", "timed_out"]
"""What a worker can do to a request, other than answer it."""


@record(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A request is over on its worker."""

    model: ModelName
    reserved_tokens: int
    used_tokens: int
    """Of its reservation's blocks, those that prompt and output really took; more than reserved when it was longer than predicted."""
    predicted_output_tokens: int
    output_tokens: Sequence[int]
    """Of the sequences that ended by themselves or by a stop string."""
    ran: bool
    """False when it was refused or lost, so that its tokens say nothing about how fast the worker drains."""
    failure: Failure | None = None
    """None: it ended as asked, or nobody waited for it any more."""
    lost_hedge: bool = False
    """Another worker was asked for it too and was quicker."""
    worker: WorkerId | None = None
    """None: not told, so that nobody's breaker hears of it."""
    tenant: str = ""
    request_class: RequestClass = RequestClass.LATENCY
    charged_service_tokens: int = 0
    """What its tenant was charged when it was placed (Price.service_tokens)…"""
    is_draft: bool = False
    """It only guessed what another worker verifies: no client's answer, and nobody pays for it."""
    service_tokens: int = 0
    """…and what the worker really did for it; nothing when the worker was lost. Equal: the prediction stands."""


NOT_LISTENING = "it does not listen"
"""The reason of a session's end that says nothing of what runs: a server that finishes before it ends closes its port first."""


class LinkListener(Protocol):
    """Called on the event loop, in the middle of reading a frame: must be quick."""

    def capacity_changed(self, model: ModelName) -> None:
        """What a worker's view says is not what it said before: it may have room now, or have become routable, or say why not."""
        ...

    def settled(self, settlement: Settlement) -> None: ...

    def session_ended(self, worker: WorkerId, reason: str) -> None: ...


class BackendStream(Protocol):
    """Events of one request on one worker; a GenerationStream with what the dispatcher needs besides."""

    worker: WorkerId
    lost: bool
    """The worker went away under it, or its engine did, or it was given up."""
    engine_died: bool
    """The worker is there, but its engine died while it had this request: maybe because of it."""
    begun: bool
    """Its prefill began: only then can it have hurt an engine."""
    failure: str
    """Every sequence ended in an error before the first token: the sentence that says why. Empty otherwise."""
    failure_reason: EndReason
    times: WorkerTimes
    """What the worker told of when; goes on being filled until it has said its last word."""

    def __aiter__(self) -> AsyncIterator[list[Event]]: ...

    @property
    def progress(self) -> int:
        """Grows with every batch of tokens that arrived."""
        ...

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for more of it."""
        ...

    def stop(self, sequence: int) -> None: ...

    def tap(self, take: Take) -> None: ...

    def tap_relayed(self, take: TakeRelayed) -> None: ...

    async def wait_for_output(self) -> None:
        """Until the first token or end is there to be read (it stays there). Raises RefusedByWorker."""
        ...

    def end_all(self, reason: EndReason, detail: str) -> None:
        """Every open sequence ends now, for its reader and on the worker."""
        ...

    def give_up(self, detail: str) -> None:
        """Its worker hangs: every open sequence ends with EndReason.TIMED_OUT, as lost, and is cancelled there should it ever wake."""
        ...

    def abandon(self, *, lost_hedge: bool = False) -> None:
        """Nobody reads on: what still runs is cancelled on the worker. The reservation settles when the worker confirms. `lost_hedge`:
        another worker was faster, which the worker is told."""
        ...


class WorkerLink(Protocol):
    endpoint: Endpoint
    worker: WorkerId
    accepting: bool
    """Discovery wants new requests here."""

    max_model_len: int | None
    """Tokens of prompt and output together; None until it is told."""

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]:
        """That requests may name there, by name."""
        ...

    @property
    def life(self) -> str:
        """Another one whenever the worker's process is; empty while there is no session."""
        ...

    @property
    def can_resume(self) -> bool:
        """It stays, and takes a Generation's resume_ids for output of its own: streams may go on here that another worker began."""
        ...

    @property
    def block_size(self) -> int | None:
        """Tokens per KV block; None until described."""
        ...

    @property
    def available_tokens(self) -> int: ...

    @property
    def in_flight(self) -> int:
        """Requests."""
        ...

    @property
    def routable(self) -> bool:
        """As its view says, without looking at anything else."""
        ...

    def view(self, cost: Price | None = None, chain: PrefixChain = NO_CHAIN) -> WorkerView:
        """For a request of this cost and prompt; without one, nothing is reservable and nothing cached."""
        ...

    def submit(self, generation: Generation, cost: Price, reserved_tokens: int, chain: PrefixChain = NO_CHAIN) -> BackendStream:
        """Only directly after a view that was routable with these tokens reservable."""
        ...

    async def run(self) -> None:
        """Until retired and idle, or closed."""
        ...

    def retire(self) -> None:
        """No new requests, no reconnect; run() returns when nothing is left in flight."""
        ...

    async def close(self) -> None:
        """At once; what is in flight ends with an error."""
        ...
