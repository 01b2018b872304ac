"""The response object: what was asked, as it comes back, and the items of the answer. Plain JSON-like data; no stream.

form.py makes one per request and fills in status, output and usage.
"""

import os
import time
from typing import Any

from pagoda_router.errors import RouterError
from pagoda_router.generation import Usage
from pagoda_router.openai.responses.request import ResponsesRequest

CUT = "length"
"""The chat's finish reason of an answer that max_output_tokens, or the context, ended."""


def new_id(prefix: str) -> str:
    return prefix + os.urandom(16).hex()


class Snapshot:
    def __init__(self, request: ResponsesRequest, answer_id: str, created: int) -> None:
        text = {"format": {"type": "text"}} if request.text is None else {"format": request.text.format or {"type": "text"}}
        self._asked = {
            "id": answer_id,
            "object": "response",
            "created_at": created,
            "background": False,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": None,
            "metadata": request.metadata or {},
            "model": request.model,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": text,
            "tool_choice": "auto" if request.tool_choice is None else request.tool_choice,
            "tools": request.tools or [],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "user": request.user,
        }

    def in_progress(self) -> dict[str, Any]:
        return self._with("in_progress", [])

    def ended(self, output: list[dict[str, Any]], usage: Usage, finish_reason: str | None) -> dict[str, Any]:
        if finish_reason == CUT:
            shown = self._with("incomplete", output, incomplete_details={"reason": "max_output_tokens"})
        else:
            shown = self._with("completed", output, completed_at=int(time.time()))
        return {**shown, "usage": usage_shown(usage)}

    def failed(self, output: list[dict[str, Any]], error: RouterError) -> dict[str, Any]:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"  # the two of OpenAI's closed list that fit
        told = f"{error.message} ({error.code})" if error.code else error.message
        return self._with("failed", output, error={"code": code, "message": told})

    def _with(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        last = {"error": None, "incomplete_details": None, "completed_at": None, "usage": None, **more}
        return {**self._asked, "status": status, "output": output, **last}


def usage_shown(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


# ---------------------------------------------------------------- items


def message_item(item_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def reasoning_item(item_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "reasoning", "id": item_id, "status": status, "summary": [], "content": content, "encrypted_content": None}


def reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def call_item(item_id: str, status: str, call_id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "id": item_id, "status": status, "call_id": call_id, "name": name, "arguments": arguments}
