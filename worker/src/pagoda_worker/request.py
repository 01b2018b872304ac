"""What is asked of the engine and what it answers, as plain data. No torch, no clock, no I/O: scheduler, engine process and front all speak
these types. Plain dataclasses: msgspec carries them across the process line as they are, and the engine needs no msgspec."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from pagoda_worker.facts import AdaptersState


class FinishReason(IntEnum):
    """Same numbers as the proto's FinishReason."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    ENGINE_ERROR = 5
    SHUTDOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Defaults are greedy without any filter."""

    temperature: float = 0.0
    """0: the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """1: off."""
    seed: int | None = None
    """Sequence i of n uses seed + i; the same seed gives the same tokens whatever else runs in the batch. None: the engine draws one."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Token id → added to its logit."""
    allowed_token_ids: list[int] = field(default_factory=list)
    """Nothing else is sampled, eos included. Empty: all."""
    bad_words: list[list[int]] = field(default_factory=list)
    """Sequences of ids that the output never holds: one of several ids is stopped at its last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """What the text of the output must be. Hashable: equal ones are compiled once."""

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice"]
    text: str = ""
    """The schema, regular expression or grammar (Lark, or GBNF); nothing for json_object and choice."""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One submission: a prompt and n sequences to continue it."""

    request_id: str
    prompt_ids: list[int]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    max_tokens: int = 16
    """Output tokens per sequence, at least 1."""
    min_tokens: int = 0
    """eos and stop ids are masked before this many output tokens."""
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    top_logprobs: int | None = None
    """None: no logprobs. 0: the sampled token's. k: also the k most likely."""
    adapter: str = ""
    """Name of a LoRA adapter that the engine has loaded: what it means when the request comes is what the whole answer is computed with,
    and prefixes of different adapters never meet. Empty: the base model."""
    cache_salt: bytes = b""
    use_prefix_cache: bool = True
    """False: neither read nor fill the prefix cache."""
    priority: int = 0
    """Larger first; equal in order of arrival."""
    deadline_s: float | None = None
    """Seconds from submission; past it the request finishes with DEADLINE."""
    resume_ids: list[int] = field(default_factory=list)
    """Output already emitted elsewhere: context for every sequence (n must be 1), counted as output, not reported again."""
    want_timings: bool = False
    structured: StructuredOutput | None = None
    prompt_logprobs: int | None = None
    """Of the prompt's tokens after the first. None: none; 0: of the tokens themselves; k: also the k most likely at each place."""
    embedding: bool = False
    """The final hidden state of the prompt's last token instead of an output; then n and max_tokens are 1."""
    runs_alone: bool = False
    """No step computes it together with another request: steps alternate between it and all others. n must be 1."""
    max_draft_tokens: int | None = None
    """That one step may guess and verify; at most what the engine is set to. 0: no speculation. None: as the engine is set."""

    @property
    def constrained(self) -> bool:
        """Some tokens are out of the question at each place of the output: the row has a bitmask (sampling/constraints.py)."""
        return self.structured is not None or bool(self.sampling.allowed_token_ids or self.sampling.bad_words)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Of one output token: natural logarithms of the raw (unscaled, unfiltered, before penalties) distribution."""

    sampled: float
    top: list[tuple[int, float]]
    """Most likely first; as many as asked."""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of the prompt's tokens 1 … n-1, given those before each: natural logarithms of the raw distribution. Flat lists, `k` per place."""

    k: int
    own: list[float]
    top_ids: list[int]
    """Most likely first."""
    top: list[float]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens not computed because the prefix cache had them at the first scheduling."""
    completion_tokens: int
    """Sampled tokens, eos included."""
    draft_tokens: int = 0
    """Guessed and verified; of them accepted:"""
    accepted_draft_tokens: int = 0
    drafts: int = 0
    """Guesses verified, and of their first, second, … tokens those accepted:"""
    accepted_by_place: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """The engine's own stamps of one sequence, CLOCK_MONOTONIC microseconds of its host; 0: it did not come to that."""

    accepted_mono_us: int
    """The scheduler has it."""
    first_scheduled_mono_us: int
    first_token_mono_us: int
    last_token_mono_us: int
    preemptions: int
    steps: int
    """That this sequence took part in, chunks of its prompt included."""
    batches: list[tuple[int, int]]
    """With want_timings: (sequences in the step, steps in a row that had so many). The steps add up to `steps`; what comes after
    MAX_BATCH_RUNS such runs is one run of size 0."""


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    usage: Usage
    timings: Timings
    stop_token_id: int | None = None
    """With STOP: the id that ended it. An eos or stop id is not among the reported token_ids."""
    detail: str = ""


@dataclass(slots=True)
class SequenceUpdate:
    """What one step did for one sequence. Nobody changes it; not frozen, since one is made for every token and that costs half as much."""

    request_id: str
    sequence: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: Finish | None = None
    started: bool = False
    """This step ran the sequence's first chunk; the next two are then set."""
    cached_tokens: int = 0
    first_scheduled_mono_us: int = 0
    prompt_logprobs: PromptLogprobs | None = None
    """With the first sampled token of the request, when it asked."""
    embedding: list[float] | None = None
    """With the finish, when it asked: length 1."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that turned out to be impossible after it was queued; it ends with this and nothing else."""

    request_id: str
    error: str
    """Name of the class in errors.py."""
    message: str
    param: str


@dataclass(frozen=True, slots=True)
class EngineState:
    """Read after every step; the front turns it into worker state, metrics and health."""

    step: int
    at_mono_us: int
    num_running: int
    num_waiting: int
    queued_prefill_tokens: int
    kv_capacity_tokens: int
    kv_free_tokens: int
    """Free or evictable."""
    preemptions_total: int
    prefix_queries_total: int
    """Prompt tokens looked up."""
    prefix_hits_total: int
    """Prompt tokens found."""
    prompt_tokens_total: int
    """Computed, cached ones not included."""
    generation_tokens_total: int
    prefill_tokens_per_s: float
    """Moving average of measured steps; 0: not yet."""
    decode_step_ms: float
    prefill_step_ms: float = 0.0
    """Of a step that computes prompts, what it costs whatever their length; 0 with prefill_token_ms 0: not known."""
    prefill_token_ms: float = 0.0
    """And for each of their tokens."""
    host_prefix_queries_total: int = 0
    """Prompt tokens that the device did not have, looked up in the host tier; 0 without one."""
    host_prefix_hits_total: int = 0
    swaps_total: int = 0
    """Of the preemptions, those that kept their blocks in host memory."""
    drafts_total: int = 0
    """Guesses verified, of one sequence and step each."""
    draft_tokens_total: int = 0
    """Their tokens; of them accepted, at each place of a guess:"""
    accepted_draft_tokens: tuple[int, ...] = ()
    sleep_level: int = 0
    """0: awake. 1: weights in host memory. 2: weights in their folder only. Asleep there is no KV cache; a request wakes the engine."""


@dataclass(frozen=True, slots=True)
class CacheChanges:
    """Of the prefix cache on the device since the last step, by chained block hash; in this order."""

    cleared: bool = False
    """Everything known before is gone."""
    removed: list[bytes] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    """A parent before its child."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    updates: list[SequenceUpdate]
    state: EngineState
    sequences: int = 0
    """That took part; 0: nothing was computed, only endings are told."""
    tokens: int = 0
    """Computed, of prompts and outputs together."""
    duration_us: int = 0
    """From the start of planning until the sampled tokens were on the host."""
    rejections: list[Rejection] = field(default_factory=list)
    cache: CacheChanges | None = None
    """None: nothing changed."""
    adapters: AdaptersState | None = None
    """None: nothing changed."""
