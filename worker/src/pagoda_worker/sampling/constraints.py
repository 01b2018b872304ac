"""Which tokens a sequence may sample next: its grammar, allowed_token_ids, bad_words and min_tokens as one bitmask per row.

Owns the constraint of every live sequence that has one, and the requests whose grammar is being compiled. Called by the engine before
and after a step, and by the runner between forward pass and sampling, so that masks are made on the CPU while the device computes. Rows
without a constraint cost nothing. Knows neither queues nor logits.

A constraint is the sequence's (sequence_constraint.py), not the row's: preemption, prefix hits and other rows do not touch it. It moves
only by tokens that are told to `advance`, in order; tokens resumed from elsewhere are replayed.
"""

import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from pagoda_worker.errors import RequestRefused
from pagoda_worker.request import Rejection, StructuredOutput
from pagoda_worker.sampling.bitmasks import Bits, no_bits, set_bits
from pagoda_worker.sampling.sequence_constraint import Constraint
from pagoda_worker.sampling.structured import COMPILE_S, GrammarCompiler, refusal
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

MAX_THREADS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowMasks:
    """Of the sampling rows that have a constraint."""

    positions: list[int]
    """In `StepPlan.sampling()`."""
    bits: Bits
    """[rows, ceil(V / 32)]: bit i % 32 of word i // 32 is 1 when token i may be sampled."""
    stuck: dict[int, str]
    """Position → why no token may be; its bits are then all 1."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What became of grammars since the last look."""

    ready: list[str] = field(default_factory=list)
    """Request ids that may be scheduled."""
    complete: list[str] = field(default_factory=list)
    """Whose resumed output is already all that the grammar takes."""
    rejections: list[Rejection] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Compiling:
    family: list[Sequence]
    matcher: "Future[LLMatcher]"
    until: float


class Constraints:
    def __init__(
        self,
        compiler: GrammarCompiler,
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`threads`: that fill masks of several rows together."""
        self._compiler = compiler
        self._eos = eos_token_ids
        self._any = no_bits(vocab_size)
        set_bits(self._any, np.arange(vocab_size))
        self._threads = min(threads, MAX_THREADS)
        self._executor: LLExecutor | None = None
        """Threads from the first step on that has two grammars."""
        self._clock = clock
        self._compiling: dict[str, _Compiling] = {}
        self._live: WeakKeyDictionary[Sequence, Constraint] = WeakKeyDictionary()

    @property
    def compiling(self) -> bool:
        return bool(self._compiling)

    def begin(self, family: list[Sequence]) -> None:
        """Of a request that was just queued. One with a grammar is held until `poll` says that it is ready."""
        request = family[0].request
        if request.structured is None:
            self._attach(family, None)
        else:
            matcher = self._compiler.compile(request.structured)
            self._compiling[request.request_id] = _Compiling(family, matcher, self._clock() + COMPILE_S)

    def poll(self) -> Compiled:
        news = Compiled()
        if not self._compiling:
            return news
        now = self._clock()
        for request_id, entry in list(self._compiling.items()):
            if not entry.matcher.done() and now < entry.until:
                continue
            del self._compiling[request_id]
            request = entry.family[0].request
            assert request.structured is not None
            try:
                complete = self._attach(entry.family, _result(entry.matcher, request.structured))
                (news.complete if complete else news.ready).append(request_id)
            except RequestRefused as refused:
                news.rejections.append(Rejection(request_id, type(refused).__name__, str(refused), refused.param))
        return news

    def wait(self, timeout_s: float) -> None:
        """Until some grammar is compiled."""
        wait([entry.matcher for entry in self._compiling.values()], timeout_s, return_when="FIRST_COMPLETED")

    def _attach(self, family: list[Sequence], matcher: "LLMatcher | None") -> bool:
        """Says whether the resumed output completes the grammar. Raises RequestRefused when it breaks it."""
        complete = False
        for sequence in family:
            constraint = Constraint(sequence.request, None if matcher is None else matcher.deep_copy(), self._any, self._eos)
            for token in sequence.request.resume_ids:
                broken = complete or bool(constraint.failure)
                complete = constraint.advance(token)
                if broken or constraint.failure:
                    raise RequestRefused("resume_ids do not satisfy what structured asks for: resume without them", param="resume_ids")
            self._live[sequence] = constraint
        return complete

    # ------------------------------------------------------------ one step

    def masks(self, samplers: list[Sequence]) -> RowMasks | None:
        """Of the sequences that sample in this step, in the plan's order; every token before must have been told to `advance`."""
        if not self._live:
            return None
        asked = [(position, sequence) for position, sequence in enumerate(samplers) if sequence.constrained]
        if not asked:
            return None
        if any(sequence.drafts for _, sequence in asked):
            return self._masks_of_places(asked)
        rows = [(position, self._live[sequence]) for position, sequence in asked]
        bits = np.repeat(self._any[None], len(rows), axis=0)
        self._fill_from_grammars([(each.matcher, i) for i, (_, each) in enumerate(rows) if each.matcher and not each.failure], bits)
        stuck: dict[int, str] = {}
        for row, (position, constraint) in zip(bits, rows, strict=True):
            if sentence := constraint.narrow(row):
                stuck[position] = sentence
                row[:] = self._any
        return RowMasks([position for position, _ in rows], bits, stuck)

    def _masks_of_places(self, rows: list[tuple[int, Sequence]]) -> RowMasks:
        """Some sample at several places in a row: at each as if its drafts before that place had been sampled."""
        bits = np.repeat(self._any[None], len(rows), axis=0)
        stuck: dict[int, str] = {}
        at = 0
        for sequence, members in itertools.groupby(rows, key=lambda row: row[1]):
            positions = [position for position, _ in members]
            sentences = self._live[sequence].narrow_ahead(sequence.drafts[: len(positions) - 1], bits[at : at + len(positions)])
            stuck |= {position: sentence for position, sentence in zip(positions, sentences, strict=True) if sentence}
            at += len(positions)
        return RowMasks([position for position, _ in rows], bits, stuck)

    def longest_possible(self, sequence: Sequence, drafts: list[int]) -> list[int]:
        """As many of the drafts, from the first on, as a grammar takes; one token may follow them."""
        constraint = self._live.get(sequence) if sequence.constrained else None
        matcher = None if constraint is None or constraint.failure else constraint.matcher
        return drafts if matcher is None else drafts[: matcher.validate_tokens(drafts)]

    def _fill_from_grammars(self, matchers: "list[tuple[LLMatcher, int]]", bits: Bits) -> None:
        if len(matchers) == 1:
            (matcher, row), width = matchers[0], bits.shape[1] * bits.itemsize
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data + row * width, width)
        elif matchers:
            if self._executor is None:
                from llguidance import LLExecutor

                self._executor = LLExecutor(self._threads)
            self._executor.unsafe_compute_mask_ptr(matchers, bits.ctypes.data, bits.shape[1] * bits.itemsize, len(bits))

    def advance(self, samplers: list[Sequence], sampled: Sampled) -> None:
        """Once the tokens are on the host: every constraint moves on. Adds what is complete to `sampled`."""
        if not self._live:
            return
        for position, sequence in enumerate(samplers):
            if sequence.constrained and not (position in sampled.broken or position in sampled.stuck or position in sampled.passed_over):
                constraint = self._live.get(sequence)
                if constraint is not None and constraint.advance(sampled.token_ids[position]):
                    sampled.complete.add(position)


def _result(matcher: "Future[LLMatcher]", wanted: StructuredOutput) -> "LLMatcher":
    """Raises RequestRefused."""
    if not matcher.done():
        raise refusal(wanted, f"it was not compiled within {COMPILE_S:g} s: make it simpler")
    error = matcher.exception()
    if error is None or isinstance(error, RequestRefused):
        return matcher.result()
    log.error("the compiler of grammars failed", exc_info=error)
    raise refusal(wanted, f"the compiler failed ({type(error).__name__})") from error
