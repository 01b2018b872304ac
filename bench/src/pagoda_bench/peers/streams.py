"""One closed round over HTTP: every prompt at once as a streaming /v1/completions, until the last token.

The load side of every server here; knows only OpenAI's protocol. Called by `http_systems`.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from pagoda_bench.peers.system import PeerUnavailable, Round

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Stream:
    ttft_s: float
    text: str
    tokens: int


def closed_round(url: str, model: str, prompts: Sequence[list[int]], output_tokens: int) -> Round:
    """Raises PeerUnavailable when a request is refused, breaks, or ends with another number of tokens."""
    try:
        seconds, streams = asyncio.run(_all(url, model, prompts, output_tokens))
    except httpx.HTTPError as error:
        raise PeerUnavailable(f"a request broke: {type(error).__name__} {error}") from error
    for stream in streams:
        if stream.tokens != output_tokens:
            raise PeerUnavailable(f"asked for {output_tokens} tokens, got {stream.tokens}")
    return Round(seconds, tuple(stream.text for stream in streams), tuple(stream.ttft_s for stream in streams))


async def _all(url: str, model: str, prompts: Sequence[list[int]], output_tokens: int) -> tuple[float, list[Stream]]:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=None)) as client:
        began = time.monotonic()
        streams = await asyncio.gather(*(_one(client, model, prompt, output_tokens) for prompt in prompts))
        return time.monotonic() - began, streams


async def _one(client: httpx.AsyncClient, model: str, prompt: list[int], output_tokens: int) -> Stream:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    ttft_s: float | None = None
    tokens = 0
    text: list[str] = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise PeerUnavailable(f"HTTP {answer.status_code}: {(await answer.aread()).decode(errors='replace')[:200]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise PeerUnavailable(f"the stream ended with {event['error']}")
            if ttft_s is None:
                ttft_s = time.monotonic() - began
            text += [choice["text"] for choice in event["choices"]]
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
    if ttft_s is None:
        raise PeerUnavailable("a stream ended without a token")
    return Stream(ttft_s, "".join(text), tokens)
