"""One choice while it grows: token ids in, text deltas and logprob entries out, cut at stop strings.

Pure apart from the tokenizer's tables. run.py feeds it; the formats read what it yields.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pagoda_router.generation import Ended, EndReason, TokenLogprobs, Tokens
from pagoda_router.openai.checks import TextRules
from pagoda_router.openai.reply.pieces import CallDelta, Pieces
from pagoda_router.openai.reply.reader import ReplyPlan, ReplyReader
from pagoda_router.records import record
from pagoda_router.text.stop import StopMatcher
from pagoda_router.text.tokens import TokenText

TOOL_CALLS = "tool_calls"
"""OpenAI's finish reason of an answer that ends with calls to be made."""


@record(frozen=True, slots=True)
class TokenEntry:
    """One output token with its logprobs, for the formats."""

    token_id: int
    logprobs: TokenLogprobs | None
    """None: of an echoed prompt's first token, which follows nothing."""
    text_offset: int
    """Characters of this choice's text (echo included) before the token."""


@dataclass(slots=True)
class Delta:
    """What one batch of events added to one choice."""

    index: int
    text: str = ""
    entries: Sequence[TokenEntry] = ()
    finish_reason: str | None = None
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()
    token_ids: Sequence[int] = ()
    """Only when they were asked for."""


class Choice:
    """Text, logprobs and token count of one sequence. `finish_reason` is set once, by the worker's end or by a stop string."""

    def __init__(
        self,
        index: int,
        text: TokenText,
        prompt_ids: Sequence[int],
        rules: TextRules,
        *,
        wants_logprobs: bool,
        echo: str,
        reply: ReplyPlan | None = None,
        shows_token_ids: bool = False,
    ) -> None:
        self.index = index
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        """Up to the end of the thinking, its tags included."""
        self.draft_tokens = self.accepted_draft_tokens = self.drafts = 0
        self.accepted_by_place: tuple[int, ...] = ()
        """Known at the end."""
        self.finish_reason: str | None = None
        self._rules = rules
        self._detokenizer = text.detokenizer(prompt_ids, skip_special_tokens=rules.skip_special_tokens, markers=rules.markers)
        self._matcher = StopMatcher(rules.stops, include_stop=rules.include_stop) if rules.stops else None
        self._wants_logprobs = wants_logprobs
        self._echo = echo
        self._decoded_chars = len(echo)
        self._sent_chars = len(echo)
        self._entries: list[TokenEntry] = []
        self._reply = None if reply is None else ReplyReader(reply)
        self._hides_thinking = reply is not None and not reply.shows_thinking
        self._token_ids: list[int] | None = [] if shows_token_ids else None
        self.is_plain = self._matcher is None and not wants_logprobs and reply is None and not shows_token_ids
        """Its text is decoded and nothing else is done to it: tokens need not be looked at one by one."""

    @property
    def stopped_by_string(self) -> bool:
        return self._matcher is not None and self._matcher.matched is not None

    @property
    def is_cut(self) -> bool:
        """It ended here, while the worker goes on."""
        return self.stopped_by_string or (self._reply is not None and self._reply.is_full)

    def echo_entries(self, entries: Sequence[TokenEntry]) -> None:
        """Of the prompt; before any token."""
        self._entries.extend(entries)

    def feed(self, tokens: Tokens) -> Delta:
        if self.is_plain:
            self.completion_tokens += len(tokens.token_ids)
            return self._delta(self._decode(tokens.token_ids))
        # Token by token: a stop string is billed to its last token, and each token's logprobs know where its text begins.
        pieces: list[str] = []
        read = Pieces()
        for position, token_id in enumerate(tokens.token_ids):
            self.completion_tokens += 1
            if self._token_ids is not None:
                self._token_ids.append(token_id)
            if self._wants_logprobs and tokens.logprobs is not None:
                self._entries.append(TokenEntry(token_id, tokens.logprobs[position], self._decoded_chars))
            piece = self._match(self._decode([token_id]))
            pieces.append(piece)
            if self._reply is not None:
                self._read(self._reply, piece, read)
            if self.is_cut:
                self._finish(EndReason.STOP.value)
                break
        return self._delta("".join(pieces), read)

    def end(self, ended: Ended) -> Delta:
        """For STOP and LENGTH; the other reasons are errors and never reach a choice."""
        pieces: list[str] = []
        if self._rules.include_stop and ended.stop_token_id is not None:
            pieces.append(self._match(self._decode([ended.stop_token_id])))
        if not self.stopped_by_string:
            pieces.append(self._match(self._detokenizer.end(truncated=ended.reason is EndReason.LENGTH)))
        if self._matcher is not None and not self.stopped_by_string:
            pieces.append(self._matcher.end())
        self.completion_tokens = max(self.completion_tokens, ended.usage.completion_tokens)
        usage = ended.usage
        self.draft_tokens, self.accepted_draft_tokens = usage.draft_tokens, usage.accepted_draft_tokens
        self.drafts, self.accepted_by_place = usage.drafts, usage.accepted_by_place
        piece, read = "".join(pieces), Pieces()
        if self._reply is not None:
            self._read(self._reply, piece, read)
        self._finish(EndReason.STOP.value if self.stopped_by_string else ended.reason.value)
        return self._delta(piece, read)

    def _read(self, reply: ReplyReader, piece: str, read: Pieces) -> None:
        was_thinking = reply.is_thinking
        read.add(reply.feed(piece))
        if (was_thinking or reply.is_thinking) and reply.has_thought:
            self.reasoning_tokens = self.completion_tokens
            if self._hides_thinking:
                self._entries.clear()

    def _finish(self, reason: str) -> None:
        has_calls = self._reply is not None and self._reply.has_calls
        self.finish_reason = TOOL_CALLS if has_calls and reason == EndReason.STOP.value else reason

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._detokenizer.feed(token_ids)
        self._decoded_chars += len(text)
        return text

    def _match(self, piece: str) -> str:
        if self._matcher is None or self.completion_tokens <= self._rules.min_tokens:
            return piece
        return self._matcher.feed(piece)

    def _delta(self, piece: str, read: Pieces | None = None) -> Delta:
        text, self._echo = self._echo + piece, ""
        self._sent_chars += len(piece)
        delta = Delta(self.index, text, (), self.finish_reason)
        if self.is_plain:
            return delta
        if self._reply is not None and read is not None:
            if self.finish_reason is not None:
                read.add(self._reply.end())
            delta = Delta(self.index, read.content, [], self.finish_reason, read.reasoning, read.calls)
        if self._token_ids is not None:
            delta.token_ids, self._token_ids = self._token_ids, []
        delta.entries = self._ready_entries(has_text=bool(delta.text or delta.reasoning or delta.calls))
        return delta

    def _ready_entries(self, *, has_text: bool) -> list[TokenEntry]:
        entries: list[TokenEntry] = []
        # Tokens whose text is held back wait with it; those behind a stop string's start were never said.
        if self._entries and (has_text or self.finish_reason is not None):
            entries, self._entries = self._entries, []
            if self.stopped_by_string:
                entries = [entry for entry in entries if entry.text_offset < self._sent_chars]
        return entries


class ScoredPrompt(Choice):
    """An echo and nothing after it: what the worker computes beyond the prompt is neither shown nor counted."""

    def feed(self, tokens: Tokens) -> Delta:
        return self._delta("")

    def end(self, ended: Ended) -> Delta:
        self._finish(EndReason.LENGTH.value)
        return self._delta("")
