"""A worker of two, or its engine alone, is killed under running streams: what every client saw, beside the same requests undisturbed. For
the stack's tests, and

    python -m pagoda_bench.killed_worker [--streams 100] [--tokens 300]

which starts its own stack of two tiny CPU workers, prints what was lost and how long streams paused, and writes bench/results/. Batch
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
from typing import Any, Literal

import httpx
import psutil

from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.local_stack import LocalStack, local_stack
from pagoda_bench.processes import running
from pagoda_bench.results import FOLDER, Row, result_here, write

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
Victim = Literal["worker", "engine"]
VICTIMS: tuple[Victim, ...] = ("worker", "engine")
NAMES = 8
FORM = {
    "type": "object",
    "properties": {"names": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": NAMES, "maxItems": NAMES}},
    "required": ["names"],
    "additionalProperties": False,
}
NOTES = (
    "one of two workers with the tiny model (front and engine), or its engine alone, is killed (SIGKILL) once every stream has begun",
    "same_…: as in a run of the same requests without the loss; the last of the streams are held to a JSON schema",
    "added_gap: the longest pause between two chunks of a stream, less that of the same stream undisturbed; low and high: least and most",
)
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


def formed_bodies(count: int) -> list[dict[str, Any]]:
    """Greedy ones that must be JSON of one form, long enough to be in the middle of it when the worker goes."""
    return [
        {"prompt": f"names {number}: ", "max_tokens": 300, "temperature": 0, "structured_outputs": {"json": FORM}}
        for number in range(count)
    ]


def is_of_the_form(text: str) -> bool:
    try:
        document = json.loads(text)
        names = document["names"]
        return set(document) == {"names"} and len(names) == NAMES and all(isinstance(name, str) for name in names)
    except (ValueError, KeyError, TypeError):
        return False


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


async def read_all(
    stack: LocalStack, asked: Sequence[Mapping[str, Any]], *, kill_after: int | None = None, victim: Victim = "worker"
) -> list[Seen]:
    """All at once. `kill_after`: chunks of all together, after which the victim is killed (SIGKILL; a worker: front and engine), once every
    stream has begun: before that a loss is a retry, of which the router allows itself fewer."""
    chunks = [0] * len(asked)
    is_done = kill_after is None

    def count(number: int) -> None:
        nonlocal is_done
        chunks[number] += 1
        if not is_done and kill_after is not None and sum(chunks) >= kill_after and all(chunks):
            is_done = True
            kill(stack, victim)

    async with httpx.AsyncClient(base_url=stack.url, timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        return await asyncio.gather(*(read(client, body, partial(count, number)) for number, body in enumerate(asked)))


def kill(stack: LocalStack, victim: Victim) -> None:
    front = running(stack.home, "pagoda_worker")[0]
    engines = front.children(recursive=True)
    for process in engines if victim == "engine" else [front, *engines]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue  # its parent took it along


async def replays(stack: LocalStack) -> int:
    async with httpx.AsyncClient(base_url=stack.url) as client:
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("pagoda_router_replays_total{")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same requests with and without the loss, in one order; `formed`: how many of the last ones were held to FORM."""

    calm: Sequence[Seen]
    disturbed: Sequence[Seen]
    formed: int
    continued: int
    """Streams that went on on the other worker."""

    @property
    def pairs(self) -> list[tuple[Seen, Seen]]:
        return list(zip(self.calm, self.disturbed, strict=True))


async def compare(stack: LocalStack, streams: int, tokens: int, formed: int, victim: Victim) -> Comparison:
    asked = [*bodies(streams, tokens), *formed_bodies(formed)]
    calm = await read_all(stack, asked)
    disturbed = await read_all(stack, asked, kill_after=streams * tokens // 8, victim=victim)
    return Comparison(calm, disturbed, formed, await replays(stack))


def rows_of(found: Comparison, tokens: int, victim: Victim) -> list[Row]:
    pairs, count = found.pairs, len(found.calm)
    case = f"{victim} killed under {count - found.formed} greedy streams of {tokens} tokens"

    def row(metric: str, value: float, unit: str, **more: Any) -> Row:
        return Row(case=case, system="pagoda", metric=metric, value=value, unit=unit, **more)

    def counted(metric: str, whole: int, value: int) -> Row:
        return row(metric, value, "streams", aim=f"= {whole}", met=value == whole)

    def longest_s(seen: Sequence[Seen]) -> float:
        return at_p99(sorted(each.longest_gap_s for each in seen))

    added_s = sorted(after.longest_gap_s - before.longest_gap_s for before, after in pairs)
    p99_s = at_p99(added_s)
    return [
        row("continued", found.continued, "streams"),
        counted("complete", count, sum(after.finish_reason is not None and not after.error for _, after in pairs)),
        counted("same_tokens_and_text", count, sum((b.token_ids, b.text) == (a.token_ids, a.text) for b, a in pairs)),
        counted("same_usage", count, sum(_billed(before) == _billed(after) for before, after in pairs)),
        counted("valid_json", found.formed, sum(is_of_the_form(after.text) for after in found.disturbed[count - found.formed :])),
        row("added_gap_p99_s", p99_s, "s", low=added_s[0], high=added_s[-1], aim="≤ 2", met=p99_s <= 2),
        row("gap_undisturbed_p99_s", longest_s(found.calm), "s"),
        row("gap_disturbed_p99_s", longest_s(found.disturbed), "s"),
    ]


def at_p99(ordered: Sequence[float]) -> float:
    return ordered[int(0.99 * (len(ordered) - 1))]


def show(found: Comparison, rows: Sequence[Row]) -> None:
    for row in rows:
        verdict = "" if row.met is None else f"  aim {row.aim}: {'met' if row.met else 'MISSED'}"
        print(f"{row.metric:24} {row.value:10.3f} {row.unit}{verdict}")
    for before, after in found.pairs:
        if before.token_ids != after.token_ids:
            at = next((i for i, (a, b) in enumerate(zip(before.token_ids, after.token_ids, strict=False)) if a != b), len(after.token_ids))
            print(f"differs from token {at} on: {before.token_ids[at : at + 4]} became {after.token_ids[at : at + 4]}")
    for error in sorted({after.error for after in found.disturbed if after.error}):
        print(f"error: {error}")


def _billed(seen: Seen) -> tuple[int, int] | None:
    return None if seen.usage is None else (seen.usage["prompt_tokens"], seen.usage["completion_tokens"])


def main() -> int:
    raise_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.killed_worker", description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--formed", type=int, default=8, help="streams besides, held to a JSON schema")
    parser.add_argument("--output", type=Path, default=FOLDER / "killed-worker.json", help="result file")
    given = parser.parse_args()
    rows: list[Row] = []
    for victim in VICTIMS:
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder) / "two.yaml"
            manifest.write_text(TWO_WORKERS)
            with local_stack(manifest, extra_env={"PAGODA_DEVICE": "cpu"}) as stack:
                found = asyncio.run(compare(stack, given.streams, given.tokens, given.formed, victim))
        rows += (of_victim := rows_of(found, given.tokens, victim))
        show(found, of_victim)
    command = f"python -m pagoda_bench.killed_worker --streams {given.streams} --tokens {given.tokens} --formed {given.formed}"
    write(result_here("killed-worker", rows, command=command, packages=("pagoda-router", "pagoda-worker"), notes=NOTES), given.output)
    print(f"wrote {given.output}")
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
