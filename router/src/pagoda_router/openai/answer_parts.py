"""What every form of an answer is made of: whole choices, usage, logprobs, and the protocol that formats keep. Pure.

formats.py and responses/ build on it; answers.py writes what they make.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from pagoda_router.generation import Usage
from pagoda_router.openai.prompt_logprobs import shown_logprob
from pagoda_router.openai.reply.pieces import CallDelta
from pagoda_router.openai.run import Progress
from pagoda_router.openai.sequence import Delta, TokenEntry
from pagoda_router.text.tokens import TokenText

encode = msgspec.json.encode


@dataclass(slots=True)
class WholeChoice:
    """One choice of an answer that is not streamed."""

    texts: list[str] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None
    reasoning: list[str] = field(default_factory=list)
    calls: list[list[CallDelta]] = field(default_factory=list)
    """Per call, its parts."""
    token_ids: list[int] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.entries.extend(delta.entries)
        self.finish_reason = delta.finish_reason
        self.reasoning.append(delta.reasoning)
        self.token_ids.extend(delta.token_ids)
        for call in delta.calls:
            if call.index == len(self.calls):
                self.calls.append([])
            self.calls[call.index].append(call)


class Format(Protocol):
    def opening(self) -> bytes:
        """What precedes the first delta of a stream."""
        ...

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        """`usage` only with continuous_usage_stats."""
        ...

    def closing(self, progress: Progress, trace: dict[str, Any] | None) -> bytes:
        """What follows the last delta, to the stream's end."""
        ...

    def whole(self, choices: Sequence[WholeChoice], progress: Progress, trace: dict[str, Any] | None) -> bytes: ...


def usage_object(usage: Usage) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    details: dict[str, Any] = {} if usage.reasoning_tokens is None else {"reasoning_tokens": usage.reasoning_tokens}
    if usage.draft_tokens:
        accepted = usage.accepted_draft_tokens
        details |= {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": usage.draft_tokens - accepted}
        if usage.drafts:
            details |= {"predictions": usage.drafts, "accepted_predictions_by_place": usage.accepted_by_place}
    if details:
        shown["completion_tokens_details"] = details
    return shown


def token_logprobs(entries: Sequence[TokenEntry], text: TokenText) -> list[dict[str, Any]]:
    """As chats and responses show them."""
    return [
        {
            **_token(entry.token_id, entry.logprobs.sampled, text),
            "top_logprobs": [_token(token_id, logprob, text) for token_id, logprob in entry.logprobs.top],
        }
        for entry in entries
        if entry.logprobs is not None
    ]


def _token(token_id: int, logprob: float, text: TokenText) -> dict[str, Any]:
    # A token may be part of a character: its bytes say what the text cannot.
    raw = text.token_bytes(token_id)
    return {"token": raw.decode("utf-8", errors="backslashreplace"), "logprob": shown_logprob(logprob), "bytes": list(raw)}
