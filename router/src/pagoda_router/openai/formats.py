"""Deltas and choices as OpenAI's JSON: stream chunks from prebuilt parts, and whole answers.

A chunk is four byte strings joined; only its text is encoded. One class per endpoint, both with the same methods; answers.py picks one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from pagoda_router.generation import Usage
from pagoda_router.openai.prepare import Job
from pagoda_router.openai.sequence import Delta, TokenEntry

DONE = b"data: [DONE]\n\n"
LOWEST_LOGPROB = -9999.0
"""What OpenAI shows for "impossible"; JSON has no infinity."""

encode = msgspec.json.encode


@dataclass(slots=True)
class WholeChoice:
    """One choice of an answer that is not streamed."""

    texts: list[str] = field(default_factory=list)
    entries: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None


class Format(Protocol):
    def opening(self) -> bytes:
        """What precedes the first delta of a stream."""
        ...

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        """`usage` only with continuous_usage_stats."""
        ...

    def usage_chunk(self, usage: Usage) -> bytes: ...

    def trace_chunk(self, trace: dict[str, Any]) -> bytes:
        """A chunk without choices, as the usage chunk: clients that know nothing of traces pass it on."""
        ...

    def whole(self, choices: Sequence[WholeChoice], usage: Usage, trace: dict[str, Any] | None) -> bytes: ...


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _logprob(value: float) -> float:
    return max(value, LOWEST_LOGPROB)


class _Common:
    object_name: str
    chunk_object_name: str

    def __init__(self, job: Job) -> None:
        self._job = job
        self._text = job.text
        self._head = (
            b'data: {"id":' + encode(job.answer_id) + b',"object":' + encode(self.chunk_object_name) + b',"created":' + encode(job.created)
        ) + (b',"model":' + encode(job.served_name) + b',"choices":[')
        self._tail = b'],"usage":null}\n\n' if job.include_usage else b"]}\n\n"

    def _tail_with(self, usage: Usage | None) -> bytes:
        return self._tail if usage is None else b'],"usage":' + encode(usage_object(usage)) + b"}\n\n"

    def usage_chunk(self, usage: Usage) -> bytes:
        return self._head + self._tail_with(usage)

    def trace_chunk(self, trace: dict[str, Any]) -> bytes:
        return self._head + (b'],"usage":null' if self._job.include_usage else b"]") + b',"pagoda_trace":' + encode(trace) + b"}\n\n"

    def _whole(self, choices: list[dict[str, Any]], usage: Usage, trace: dict[str, Any] | None) -> bytes:
        job = self._job
        answer = {
            "id": job.answer_id,
            "object": self.object_name,
            "created": job.created,
            "model": job.served_name,
            "choices": choices,
            "usage": usage_object(usage),
        }
        return encode(answer if trace is None else {**answer, "pagoda_trace": trace})


class ChatFormat(_Common):
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def opening(self) -> bytes:
        role = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        choices = (b'{"index":%d,' % index + role for index in range(self._job.n))
        return b"".join(self._head + choice + self._tail for choice in choices)

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        head, tail = self._head + b'{"index":%d,"delta":{' % delta.index, self._tail_with(usage)
        chunk = b""
        if delta.text or delta.entries:
            logprobs = encode(self._logprobs(delta.entries)) if delta.entries else b"null"
            chunk = head + b'"content":' + encode(delta.text) + b'},"logprobs":' + logprobs + b',"finish_reason":null}' + tail
        if delta.finish_reason is not None:
            chunk += head + b'},"logprobs":null,"finish_reason":' + encode(delta.finish_reason) + b"}" + tail
        return chunk

    def whole(self, choices: Sequence[WholeChoice], usage: Usage, trace: dict[str, Any] | None) -> bytes:
        return self._whole(
            [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": "".join(choice.texts), "refusal": None},
                    "logprobs": self._logprobs(choice.entries) if self._job.wants_logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            usage,
            trace,
        )

    def _logprobs(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        return {
            "content": [
                {
                    **self._token(entry.token_id, entry.logprobs.sampled),
                    "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in entry.logprobs.top],
                }
                for entry in entries
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        # A token may be part of a character: its bytes say what the text cannot.
        raw = self._text.token_bytes(token_id)
        return {"token": raw.decode("utf-8", errors="backslashreplace"), "logprob": _logprob(logprob), "bytes": list(raw)}


class CompletionFormat(_Common):
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def opening(self) -> bytes:
        return b""

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        logprobs = encode(self._logprobs(delta.entries)) if delta.entries else b"null"
        choice = b'{"index":%d,"text":' % delta.index + encode(delta.text) + b',"logprobs":' + logprobs
        return self._head + choice + b',"finish_reason":' + encode(delta.finish_reason) + b"}" + self._tail_with(usage)

    def whole(self, choices: Sequence[WholeChoice], usage: Usage, trace: dict[str, Any] | None) -> bytes:
        return self._whole(
            [
                {
                    "index": index,
                    "text": "".join(choice.texts),
                    "logprobs": self._logprobs(choice.entries) if self._job.wants_logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            usage,
            trace,
        )

    def _logprobs(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        return {
            "tokens": [self._shown(entry.token_id) for entry in entries],
            "token_logprobs": [_logprob(entry.logprobs.sampled) for entry in entries],
            # As OpenAI: the sampled token is there even when it is not among the most likely.
            "top_logprobs": [
                {
                    self._shown(token_id): _logprob(logprob)
                    for token_id, logprob in (*entry.logprobs.top, (entry.token_id, entry.logprobs.sampled))
                }
                for entry in entries
            ],
            "text_offset": [entry.text_offset for entry in entries],
        }

    def _shown(self, token_id: int) -> str:
        raw = self._text.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
