"""One choice while it grows: token ids in, text deltas and logprob entries out, cut at stop strings.

Pure apart from the tokenizer's tables. run.py feeds it; the formats read what it yields.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagoda_router.generation import Ended, EndReason, TokenLogprobs, Tokens
from pagoda_router.openai.checks import TextRules
from pagoda_router.stop import StopMatcher
from pagoda_router.tokens import TokenText


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One output token with its logprobs, for the formats."""

    token_id: int
    logprobs: TokenLogprobs
    text_offset: int
    """Characters of this choice's text (echo included) before the token."""


@dataclass(slots=True)
class Delta:
    """What one batch of events added to one choice."""

    index: int
    text: str = ""
    entries: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None


class Choice:
    """Text, logprobs and token count of one sequence. `finish_reason` is set once, by the worker's end or by a stop string."""

    def __init__(
        self, index: int, text: TokenText, prompt_ids: Sequence[int], rules: TextRules, *, wants_logprobs: bool, echo: str
    ) -> None:
        self.index = index
        self.completion_tokens = 0
        self.finish_reason: str | None = None
        self._rules = rules
        self._detokenizer = text.detokenizer(prompt_ids, skip_special_tokens=rules.skip_special_tokens)
        self._matcher = StopMatcher(rules.stops, include_stop=rules.include_stop) if rules.stops else None
        self._wants_logprobs = wants_logprobs
        self._echo = echo
        self._decoded_chars = len(echo)
        self._sent_chars = len(echo)
        self._entries: list[TokenEntry] = []

    @property
    def stopped_by_string(self) -> bool:
        return self._matcher is not None and self._matcher.matched is not None

    def feed(self, tokens: Tokens) -> Delta:
        if self._matcher is None and not self._wants_logprobs:
            self.completion_tokens += len(tokens.token_ids)
            return self._delta(self._decode(tokens.token_ids))
        # Token by token: a stop string is billed to its last token, and each token's logprobs know where its text begins.
        pieces: list[str] = []
        for position, token_id in enumerate(tokens.token_ids):
            self.completion_tokens += 1
            if self._wants_logprobs and tokens.logprobs is not None:
                self._entries.append(TokenEntry(token_id, tokens.logprobs[position], self._decoded_chars))
            pieces.append(self._match(self._decode([token_id])))
            if self.stopped_by_string:
                self.finish_reason = EndReason.STOP.value
                break
        return self._delta("".join(pieces))

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
        self.finish_reason = EndReason.STOP.value if self.stopped_by_string else ended.reason.value
        return self._delta("".join(pieces))

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._detokenizer.feed(token_ids)
        self._decoded_chars += len(text)
        return text

    def _match(self, piece: str) -> str:
        if self._matcher is None or self.completion_tokens <= self._rules.min_tokens:
            return piece
        return self._matcher.feed(piece)

    def _delta(self, piece: str) -> Delta:
        text, self._echo = self._echo + piece, ""
        self._sent_chars += len(piece)
        entries: list[TokenEntry] = []
        # Tokens whose text is held back wait with it; those behind a stop string's start were never said.
        if self._entries and (text or self.finish_reason is not None):
            entries, self._entries = self._entries, []
            if self.stopped_by_string:
                entries = [entry for entry in entries if entry.text_offset < self._sent_chars]
        return Delta(self.index, text, entries, self.finish_reason)
