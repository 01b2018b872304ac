"""A worker of two is killed under running streams: what every client saw, beside the same requests undisturbed. For the stack's tests, and

    python -m pagoda_bench.killed_worker [--streams 100] [--tokens 300]

which starts its own stack of two tiny CPU workers, and prints what was lost and the longest gap between two tokens of each stream. Batch
invariance is on: a replay computes as a prompt what was decoded before, and without it a tie of logits may fall the other way.
Requests go to the workers in turn, so that whichever is killed has half of them.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from pagoda_bench.local_stack import LocalStack, local_stack
from pagoda_bench.processes import running

TWO_WORKERS = """apiVersion: pagoda.dev/v1alpha1
kind: InferenceModel
metadata: {name: tiny}
spec:
  model: {source: builtin://tiny}
  engine: {maxModelLen: 2048, batchInvariant: true}
  resources: {cpu: 500m, memory: 2Gi}
  scaling: {min: 2, max: 2}
  routing: {policy: round-robin}
"""
WORDS = ("My", "The", "What is 27 + 46?", "Once", "Write a list:", "A", "In the", "One, two, three,")


@dataclass(slots=True)
class Seen:
    """By one client of one stream."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: str = ""
    longest_gap_s: float = 0.0


def bodies(count: int, tokens: int) -> list[dict[str, Any]]:
    """Greedy ones, each with a prompt of its own."""
    return [
        {"prompt": f"{WORDS[number % len(WORDS)]} {number}", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        for number in range(count)
    ]


async def read(client: httpx.AsyncClient, body: Mapping[str, Any], on_chunk: Callable[[], None] = lambda: None) -> Seen:
    seen, last_s = Seen(), 0.0
    asked = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True, **body}
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        if answer.status_code != 200:
            seen.error = (await answer.aread()).decode()
            return seen
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                seen.error = event["error"]["message"]
                continue
            seen.usage = event.get("usage") or seen.usage
            for choice in event["choices"]:
                now_s = time.monotonic()
                seen.longest_gap_s = max(seen.longest_gap_s, now_s - last_s if last_s else 0.0)
                last_s = now_s
                seen.text += choice["text"]
                seen.token_ids += choice.get("token_ids") or []
                seen.finish_reason = choice["finish_reason"] or seen.finish_reason
                on_chunk()
    return seen


async def read_all(stack: LocalStack, asked: Sequence[Mapping[str, Any]], *, kill_after: int | None = None) -> list[Seen]:
    """All at once. `kill_after`: chunks of all together, after which one of the workers is killed (SIGKILL: front and engine), once every
    stream has begun: before that a loss is a retry, of which the router allows itself fewer."""
    chunks = [0] * len(asked)
    is_done = kill_after is None

    def count(number: int) -> None:
        nonlocal is_done
        chunks[number] += 1
        if not is_done and kill_after is not None and sum(chunks) >= kill_after and all(chunks):
            is_done = True
            kill_a_worker(stack)

    async with httpx.AsyncClient(base_url=stack.url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        return await asyncio.gather(*(read(client, body, partial(count, number)) for number, body in enumerate(asked)))


def kill_a_worker(stack: LocalStack) -> None:
    front = running(stack.home, "pagoda_worker")[0]
    for process in [front, *front.children(recursive=True)]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue  # its parent took it along


async def replays(stack: LocalStack) -> int:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("pagoda_router_replays_total{")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


async def compare(stack: LocalStack, streams: int, tokens: int) -> int:
    asked = bodies(streams, tokens)
    calm = await read_all(stack, asked)
    disturbed = await read_all(stack, asked, kill_after=streams * tokens // 8)
    pairs = list(zip(calm, disturbed, strict=True))
    same = sum(before.token_ids == after.token_ids and before.text == after.text for before, after in pairs)
    billed = sum(_billed(before) == _billed(after) for before, after in pairs)
    complete = sum(after.finish_reason == "length" for after in disturbed)
    print(f"streams {streams}, tokens each {tokens}, continued on the other worker {await replays(stack)}")
    print(f"complete {complete}, tokens and text as undisturbed {same}, usage as undisturbed {billed}")
    for before, after in pairs:
        if before.token_ids != after.token_ids:
            at = next((i for i, (a, b) in enumerate(zip(before.token_ids, after.token_ids, strict=False)) if a != b), len(after.token_ids))
            print(f"differs from token {at} on: {before.token_ids[at : at + 4]} became {after.token_ids[at : at + 4]}")
    for name, run in (("undisturbed", calm), ("disturbed", disturbed)):
        gaps_s = sorted(seen.longest_gap_s for seen in run)
        print(f"longest gap of each stream, {name}: p50 {gaps_s[len(gaps_s) // 2]:.3f} s, p99 {gaps_s[int(0.99 * len(gaps_s))]:.3f} s")
    for error in sorted({after.error for after in disturbed if after.error}):
        print(f"error: {error}")
    return 0 if same == billed == complete == streams else 1


def _billed(seen: Seen) -> tuple[int, int] | None:
    return None if seen.usage is None else (seen.usage["prompt_tokens"], seen.usage["completion_tokens"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.killed_worker", description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "two.yaml"
        manifest.write_text(TWO_WORKERS)
        with local_stack(manifest, extra_env={"PAGODA_DEVICE": "cpu"}) as stack:
            return asyncio.run(compare(stack, arguments.streams, arguments.tokens))


if __name__ == "__main__":
    sys.exit(main())
