"""Deltas and choices as OpenAI's JSON: stream chunks from prebuilt parts, and whole answers.

A chunk is four byte strings joined; only its text is encoded. One class per endpoint, both with the same methods; answers.py picks one.
"""

from collections.abc import Sequence
from typing import Any

from pagoda_router.generation import Usage
from pagoda_router.openai.answer_parts import WholeChoice, encode, token_logprobs, usage_object
from pagoda_router.openai.prepare import Job
from pagoda_router.openai.prompt_logprobs import shown_logprob, vllm_prompt_logprobs
from pagoda_router.openai.reply.pieces import CallDelta
from pagoda_router.openai.run import Progress
from pagoda_router.openai.sequence import Delta, TokenEntry

DONE = b"data: [DONE]\n\n"


class _Common:
    object_name: str
    chunk_object_name: str

    def __init__(self, job: Job) -> None:
        self._job = job
        self._text = job.text
        self._head = self._tail = b""  # of a stream's chunks
        if not job.stream:
            return
        self._head = (
            b'data: {"id":' + encode(job.answer_id) + b',"object":' + encode(self.chunk_object_name) + b',"created":' + encode(job.created)
        ) + (b',"model":' + encode(job.served_name) + b',"choices":[')
        self._tail = b'],"usage":null}\n\n' if job.include_usage else b"]}\n\n"

    def _tail_with(self, usage: Usage | None) -> bytes:
        return self._tail if usage is None else b'],"usage":' + encode(usage_object(usage)) + b"}\n\n"

    def closing(self, progress: Progress, trace: dict[str, Any] | None) -> bytes:
        """Usage and trace come in chunks without choices: clients that know nothing of traces pass theirs on."""
        last = self._head + self._tail_with(progress.usage) if self._job.include_usage else b""
        if trace is not None:
            last += self._head + (b'],"usage":null' if self._job.include_usage else b"]") + b',"pagoda_trace":' + encode(trace) + b"}\n\n"
        return last + DONE

    def _whole(self, choices: list[dict[str, Any]], usage: Usage, trace: dict[str, Any] | None, **more: Any) -> bytes:
        job = self._job
        answer = {
            "id": job.answer_id,
            "object": self.object_name,
            "created": job.created,
            "model": job.served_name,
            "choices": choices,
            "usage": usage_object(usage),
            **more,
        }
        return encode(answer if trace is None else {**answer, "pagoda_trace": trace})

    def _prompt(self, position: int, progress: Progress) -> dict[str, Any]:
        """What was asked for about one prompt, in vLLM's fields."""
        job, shown = self._job, dict[str, Any]()
        ids = job.generations[position].prompt_ids
        if job.shows_prompt_logprobs:
            known = progress.prompt_logprobs.get(position)
            shown["prompt_logprobs"] = None if known is None else vllm_prompt_logprobs(ids, known, self._text)
        if job.shows_token_ids:
            shown["prompt_token_ids"] = list(ids)
        return shown

    def _ids(self, token_ids: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(token_ids)} if self._job.shows_token_ids else {}


class ChatFormat(_Common):
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        choices = job.n * len(job.generations) if job.stream else 0
        self._text_heads = [self._head + b'{"index":%d,"delta":{"content":' % index for index in range(choices)]
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def opening(self) -> bytes:
        role = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        choices = (b'{"index":%d,' % index + role for index in range(self._job.n))
        return b"".join(self._head + choice + self._tail for choice in choices)

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        if delta.finish_reason is None and usage is None and not delta.entries:
            return self._text_heads[delta.index] + encode(delta.text) + self._text_tail  # nearly all chunks
        head, tail = self._head + b'{"index":%d,"delta":{' % delta.index, self._tail_with(usage)
        chunk = b""
        if delta.text or delta.entries:
            logprobs = encode(self._logprobs(delta.entries)) if delta.entries else b"null"
            chunk = head + b'"content":' + encode(delta.text) + b'},"logprobs":' + logprobs + b',"finish_reason":null}' + tail
        if delta.finish_reason is not None:
            chunk += head + b'},"logprobs":null,"finish_reason":' + encode(delta.finish_reason) + b"}" + tail
        return chunk

    def whole(self, choices: Sequence[WholeChoice], progress: Progress, trace: dict[str, Any] | None) -> bytes:
        return self._whole(
            [
                {
                    "index": index,
                    "message": self._message(choice),
                    "logprobs": self._logprobs(choice.entries) if self._job.wants_logprobs else None,
                    "finish_reason": choice.finish_reason,
                    **self._ids(choice.token_ids),
                }
                for index, choice in enumerate(choices)
            ],
            progress.usage,
            trace,
            **self._prompt(0, progress),
        )

    def _message(self, choice: WholeChoice) -> dict[str, Any]:
        return {"role": "assistant", "content": "".join(choice.texts), "refusal": None}

    def _logprobs(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        return {"content": token_logprobs(entries, self._text), "refusal": None}


class ReplyFormat(ChatFormat):
    """Of chats whose text is read for thinking and tool calls, or whose token ids are shown. Apart: other chunks cost what they did."""

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        shown: dict[str, Any] = {}
        if delta.reasoning:
            # The second name is vLLM's newer one; clients read either.
            shown["reasoning_content"] = shown["reasoning"] = delta.reasoning
        if delta.text or (delta.entries and not delta.reasoning and not delta.calls):
            shown["content"] = delta.text
        if delta.calls:
            shown["tool_calls"] = [_call_delta(call) for call in delta.calls]
        head, tail = self._head, self._tail_with(usage)
        chunk = b""
        if shown or delta.token_ids:
            logprobs = self._logprobs(delta.entries) if delta.entries else None
            choice = {"index": delta.index, "delta": shown, "logprobs": logprobs, "finish_reason": None, **self._ids(delta.token_ids)}
            chunk = head + encode(choice) + tail
        if delta.finish_reason is not None:
            chunk += head + encode({"index": delta.index, "delta": {}, "logprobs": None, "finish_reason": delta.finish_reason}) + tail
        return chunk

    def _message(self, choice: WholeChoice) -> dict[str, Any]:
        message = super()._message(choice)
        plan = self._job.reply
        if plan is not None and plan.thinks and plan.shows_thinking:
            message["reasoning_content"] = message["reasoning"] = "".join(choice.reasoning) or None
        if choice.calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_whole_call(parts) for parts in choice.calls]
        return message


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _whole_call(parts: Sequence[CallDelta]) -> dict[str, Any]:
    arguments = "".join(part.arguments for part in parts)
    return {"id": parts[0].call_id, "type": "function", "function": {"name": parts[0].name, "arguments": arguments}}


class CompletionFormat(_Common):
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def opening(self) -> bytes:
        return b""

    def chunk(self, delta: Delta, usage: Usage | None) -> bytes:
        logprobs = encode(self._logprobs(delta.entries)) if delta.entries else b"null"
        choice = b'{"index":%d,"text":' % delta.index + encode(delta.text) + b',"logprobs":' + logprobs
        if delta.token_ids:
            choice += b',"token_ids":' + encode(delta.token_ids)
        return self._head + choice + b',"finish_reason":' + encode(delta.finish_reason) + b"}" + self._tail_with(usage)

    def whole(self, choices: Sequence[WholeChoice], progress: Progress, trace: dict[str, Any] | None) -> bytes:
        return self._whole(
            [
                {
                    "index": index,
                    "text": "".join(choice.texts),
                    "logprobs": self._logprobs(choice.entries) if self._job.wants_logprobs else None,
                    "finish_reason": choice.finish_reason,
                    **self._ids(choice.token_ids),
                    **self._prompt(index // self._job.n, progress),
                }
                for index, choice in enumerate(choices)
            ],
            progress.usage,
            trace,
        )

    def _logprobs(self, entries: Sequence[TokenEntry]) -> dict[str, Any]:
        return {
            "tokens": [self._shown(entry.token_id) for entry in entries],
            "token_logprobs": [None if entry.logprobs is None else shown_logprob(entry.logprobs.sampled) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": [entry.text_offset for entry in entries],
        }

    def _top(self, entry: TokenEntry) -> dict[str, float] | None:
        if entry.logprobs is None:
            return None
        # As OpenAI: the sampled token is there even when it is not among the most likely.
        all_of_them = (*entry.logprobs.top, (entry.token_id, entry.logprobs.sampled))
        return {self._shown(token_id): shown_logprob(logprob) for token_id, logprob in all_of_them}

    def _shown(self, token_id: int) -> str:
        raw = self._text.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
