"""One request on the worker that verifies, and the branch of it that a drafting worker writes ahead: keeps both in step.

Told by their two streams what came, in the middle of reading a frame; answers by submitting, forwarding and cancelling, which never wait.
The request itself runs as ever: whatever happens here, its worker goes on without drafts. Made by Drafting, which picks the workers.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from pagoda_router.backends.request_stream import RequestStream
from pagoda_router.drafting.guesses import Guesses, Stop, Verdict
from pagoda_router.generation import Ended, EndReason, Generation, ModelName, WorkerId
from pagoda_router.tracing.record import GenerationTrace

MOST_AHEAD = 96
"""Tokens of one branch. It ends there, and goes on when half of it came true: a drafting worker must not write an answer that nobody
wants to its end, and its KV cache holds what a branch may become."""
MOST_LOSSES = 1
"""Drafting workers that a request may lose and still get another."""


class Desk(Protocol):
    """What a companion asks of Drafting."""

    def open_branch(self, branch: Generation, avoid: frozenset[WorkerId], prefer: WorkerId | None) -> RequestStream | Stop:
        """On a drafting worker; or why not."""
        ...

    def is_on(self, generation: Generation) -> bool:
        """The manifest still says so."""
        ...

    def drafted(self, generation: Generation, tokens: int) -> None: ...
    def verified(self, generation: Generation, drafts: int, accepted: int) -> None: ...
    def stopped(self, generation: Generation, reason: Stop) -> None: ...
    def paid(self, generation: Generation) -> None:
        """The request ended and drafts were of use to the end."""
        ...


class Branch:
    """What follows the stream on the drafting worker. One that its companion has left behind says nothing any more."""

    def __init__(self, companion: "Companion") -> None:
        self._companion = companion
        self.end: Ended | None = None

    def came(self, token_ids: Sequence[int]) -> None:
        self._companion.branch_grew(self, token_ids)

    def ended(self, end: Ended) -> None:
        self.end = end

    def left(self) -> None:
        self._companion.branch_left(self)


class Companion:
    """Follows the stream on the verifying worker."""

    def __init__(self, desk: Desk, generation: Generation, draft_model: ModelName, stream: RequestStream) -> None:
        """`generation`: as it was submitted there, with a seed."""
        self._desk = desk
        self._generation = generation
        self._draft_model = draft_model
        self._stream = stream
        self._guesses = Guesses(generation.resume_ids)
        self._branch: Branch | None = None
        self._branch_stream: RequestStream | None = None
        self._is_complete = False
        """The branch ended as its model would have the answer end."""
        self._drafter: WorkerId | None = None
        self._lost: frozenset[WorkerId] = frozenset()
        self._is_over = False

    def begin(self) -> None:
        self._stream.follower = self
        self._open()

    # ------------------------------------------------------------ the verifying worker's stream

    def came(self, token_ids: Sequence[int]) -> None:
        if self._is_over:
            return
        if not self._desk.is_on(self._generation):
            self._stop(Stop.OFF)
            return
        self._heed(self._guesses.came_true(token_ids))

    def ended(self, end: Ended) -> None:
        self._desk.verified(self._generation, end.usage.draft_tokens, end.usage.accepted_draft_tokens)

    def left(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._stream.hurt is None:
                self._desk.paid(self._generation)
        self._leave_branch()

    # ------------------------------------------------------------ the drafting worker's

    def branch_grew(self, branch: Branch, token_ids: Sequence[int]) -> None:
        if branch is not self._branch:
            return
        self._desk.drafted(self._generation, len(token_ids))
        self._forward(token_ids)

    def branch_left(self, branch: Branch) -> None:
        """Its end, or that of its worker."""
        if branch is not self._branch:
            return
        end, stream = branch.end, self._branch_stream
        self._branch = self._branch_stream = None
        if end is None and (stream is None or stream.hurt != "worker_lost"):
            self._stop(Stop.REFUSED)
        elif end is None:
            self._lose_drafter()
        elif end.reason is EndReason.STOP:
            self._is_complete = True
            if end.stop_token_id is not None:
                self._forward([end.stop_token_id])
        elif end.reason is EndReason.LENGTH:
            self._go_on()
        else:
            self._lose_drafter()

    # ------------------------------------------------------------ inside

    def _forward(self, token_ids: Sequence[int]) -> None:
        position, news = self._guesses.drafted(token_ids)
        verdict = self._guesses.judge()
        if verdict is Verdict.RIGHT and news:
            self._stream.draft(position, news)
        self._heed(verdict)

    def _heed(self, verdict: Verdict | Stop) -> None:
        if isinstance(verdict, Stop):
            self._stop(verdict)
        elif verdict in (Verdict.WRONG, Verdict.BEHIND):
            self._guesses.begin_again()
            self._open()
        elif self._branch is None and not self._is_complete:
            self._go_on()

    def _go_on(self) -> None:
        """The branch came to the end of what it was asked for; the next part of it when the answer has come so far."""
        if self._guesses.ahead <= MOST_AHEAD // 2:
            self._open()

    def _open(self) -> None:
        self._leave_branch()
        generation, text = self._generation, self._guesses.text
        most = min(generation.max_tokens, len(text) + MOST_AHEAD)
        if len(text) >= most:
            return
        asked = replace(
            generation,
            model=self._draft_model,
            max_tokens=most,
            min_tokens=min(generation.min_tokens, most),
            resume_ids=text,
            adapter="",
            variant=None,
            top_logprobs=None,
            prompt_logprobs=None,
            is_draft=True,
            trace=GenerationTrace(),
        )
        opened = self._desk.open_branch(asked, self._lost, self._drafter)
        if isinstance(opened, Stop):
            self._stop(opened)
            return
        self._branch, self._branch_stream, self._is_complete = Branch(self), opened, False
        self._drafter = opened.worker
        opened.follower = self._branch

    def _lose_drafter(self) -> None:
        if self._drafter is not None:
            self._lost |= {self._drafter}
        self._drafter = None
        if len(self._lost) > MOST_LOSSES:
            self._stop(Stop.DRAFTER_LOST)
        else:
            self._open()

    def _leave_branch(self) -> None:
        stream, self._branch, self._branch_stream = self._branch_stream, None, None
        if stream is not None:
            stream.abandon()

    def _stop(self, reason: Stop) -> None:
        """For the rest of this request, which goes on without."""
        self._is_over = True
        self._leave_branch()
        self._desk.stopped(self._generation, reason)
