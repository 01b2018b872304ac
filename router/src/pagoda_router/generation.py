"""One generation as the router's halves speak of it: the OpenAI surface (openai/, app) makes a Generation, a backend turns it into events.

Pure data and two protocols; token ids only, text never (the surface detokenizes). Called by everything; knows of ours the trace's records.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Protocol

from pagoda_router.abilities import ALL_ON, Switches
from pagoda_router.records import record
from pagoda_router.relays import Relay, Relayed
from pagoda_router.tracing.record import GenerationTrace

ModelName = NewType("ModelName", str)
"""metadata.name of the InferenceModel; what workers call it."""
WorkerId = NewType("WorkerId", str)


class RequestClass(StrEnum):
    """What a request wants of the fleet; earlier ones go first."""

    LATENCY = "latency"
    """Somebody reads along."""
    THROUGHPUT = "throughput"
    """Batch work: whenever there is room."""


@record(frozen=True, slots=True)
class Sender:
    """Whom a request is counted for, and how urgent it is: the API key's word, which a header may only lower."""

    tenant: str = ""
    """Never a client's own words: the key's. Empty: one tenant for all that have no key of their own."""
    request_class: RequestClass = RequestClass.LATENCY
    deadline_s: float | None = None
    """From this request's arrival; the client's own wish."""


NOBODY = Sender()


@record(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Defaults are OpenAI's: temperature 1, no filter."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    """Empty: all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of ids that the output must not contain."""


@dataclass(frozen=True, slots=True)
class Structured:
    """The form that the whole output must have; the fields are the wire's kinds, exactly one is set."""

    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request's place in line, kept from before its prompt could be tokenized."""

    ticket: int
    at_s: float
    """On the dispatcher's clock."""


@record(frozen=True, slots=True, kw_only=True)
class Generation:
    """A request after templates and tokenization: what admission prices and a worker runs."""

    request_id: str
    model: ModelName
    prompt_ids: Sequence[int]
    adapter: str = ""
    """Of the model; empty: the model alone."""
    max_tokens: int
    """Output tokens per sequence; already capped by the model's context."""
    explicit_max_tokens: bool
    """The client asked for this limit (a better predictor of output than the context's end)."""
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    """None: none. 0: of the sampled token. k: also of the k most likely."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens."""
    structured: Structured | None = None
    embedding: bool = False
    """No output: the last hidden state of the prompt."""
    cache_salt: bytes = b""
    switches: Switches = ALL_ON
    tenant: str = ""
    request_class: RequestClass = RequestClass.LATENCY
    priority: int = 0
    """The client's wish among its own requests; larger is sooner."""
    deadline_s: float | None = None
    traceparent: str = ""
    """W3C, for the worker: whose child its work is."""
    tracestate: str = ""
    variant: str | None = None
    """The client insists on this one. None: by weight."""
    arrival: Arrival | None = None
    """From Dispatcher.hold; None: it arrives now."""
    resume_ids: Sequence[int] = ()
    """Output that a lost worker gave (n is 1): context for the next one, counted as output, not sent again."""
    is_draft: bool = False
    """Of another model's answer: nobody reads it but the router."""
    relay: Relay | None = None
    """For a backend that takes text. prompt_ids are then 4-byte pieces of the prompt's JSON: about as many as tokens, equal where it is."""
    trace: GenerationTrace = field(default_factory=GenerationTrace, compare=False, repr=False)
    """Written while it is placed and runs."""


class EndReason(StrEnum):
    """OpenAI's finish reasons, then ours that become error events."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ENGINE_ERROR = "engine_error"
    SHUTDOWN = "shutdown"
    TIMED_OUT = "timed_out"


@record(frozen=True, slots=True)
class TokenLogprobs:
    sampled: float
    top: tuple[tuple[int, float], ...]


@record(frozen=True, slots=True)
class Started:
    """The sequence's prefill began."""

    sequence: int
    cached_tokens: int
    queue_us: int


@record(frozen=True, slots=True)
class Tokens:
    sequence: int
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprobs] | None


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of the prompt's tokens from the second on, given those before each. Once per generation, before its first tokens."""

    tokens: Sequence[TokenLogprobs]
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """Once per generation that asked for an embedding, before its end."""

    values: Sequence[float]
    sequence: int = 0


@record(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int | None = None
    """Of completion_tokens. None: the model is not one that thinks before it answers."""
    draft_tokens: int = 0
    """Guessed by speculation and verified; of them accepted, so part of completion_tokens:"""
    accepted_draft_tokens: int = 0
    drafts: int = 0
    """Guesses verified, and of their first, second, … tokens those accepted. 0 and empty of workers that do not say."""
    accepted_by_place: tuple[int, ...] = ()


@record(frozen=True, slots=True)
class Ended:
    """The sequence's last event, always sent exactly once unless the caller stopped it."""

    sequence: int
    reason: EndReason
    usage: Usage
    stop_token_id: int | None = None
    detail: str = ""
    """For reasons that are errors: one sentence for the client."""


Event = Started | Tokens | PromptLogprobs | Embedded | Relayed | Ended


Take = Callable[[Tokens], bool]
"""False: it cannot now, and the reader gets them as any other event."""
TakeRelayed = Callable[[Relayed], bool]
"""The same of another backend's bytes."""


class GenerationStream(Protocol):
    """Events of one admitted generation. Each item is everything that arrived together; it leaves together."""

    worker: WorkerId

    def __aiter__(self) -> AsyncIterator[list[Event]]: ...

    def stop(self, sequence: int) -> None:
        """A stop string was found: cancel this sequence, billed up to here. No further events of it follow."""

    def tap(self, take: Take) -> None:
        """Tokens that come while its reader waits for more are offered to `take` as they come, in the middle of reading a frame: what it
        takes costs no turn of the event loop. What it raises is raised where the stream is read. A stream may never offer any."""

    def tap_relayed(self, take: TakeRelayed) -> None:
        """The same, of one whose answer is relayed."""


class Dispatcher(Protocol):
    """Admits, places and runs generations. Leaving the context cancels what still runs and settles the budget, whatever happened inside.

    Entering raises errors.Overloaded, errors.NoWorker, errors.ModelNotFound or errors.BadRequest before the first event.
    """

    def generate(self, generation: Generation) -> AbstractAsyncContextManager[GenerationStream]: ...

    def expected_output_tokens(self, generation: Generation) -> int:
        """Of all its sequences together, as admission predicts them."""
        ...

    async def hold(self, model: ModelName, variant: str | None, cost_tokens: int, sender: Sender = NOBODY) -> Arrival:
        """Waits, as a request of about this cost does, until Catalog.text has an answer for the model. Raises what entering raises."""
        ...

    def worker_in_s(self, model: ModelName) -> float | None:
        """Until a model without workers can answer, by how long it took before. None: nothing to go by."""
        ...
