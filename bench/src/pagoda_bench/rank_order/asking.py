"""Asks a running server what the simulator's users ask, each at its time, and keeps how long the first token took. An open loop over HTTP.

Knows nothing of what is behind the address. Called by paced_fleet.py and tiny_workers.py.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pagoda_bench.load.client import Client, Target

AHEAD_S = 0.5
"""Between the decision to begin and the first request's time."""


@dataclass(frozen=True, slots=True)
class Ask:
    at_s: float
    body: bytes

    @staticmethod
    def completion(at_s: float, prompt_ids: Sequence[int], **fields: Any) -> "Ask":
        """A stream of a completion, by token ids."""
        return Ask(at_s, json.dumps({"prompt": list(prompt_ids), "stream": True, "temperature": 0, **fields}).encode())


@dataclass(slots=True)
class Answer:
    """`first_s` and `ended_s` from when it was due. None: it never came."""

    first_s: float | None = None
    ended_s: float | None = None
    failure: str = ""


class _FirstEvent:
    """A sink of the client's that looks for the first event."""

    def __init__(self, answer: Answer, due_s: float) -> None:
        self.came = asyncio.Event()
        self._answer = answer
        self._due_s = due_s
        self._seen = bytearray()

    def feed(self, body: bytes, now: float) -> None:
        if not self.came.is_set():
            self._seen += body
            if b"data:" in self._seen:  # comments keep a connection alive, and are no token
                self._answer.first_s = now - self._due_s
                self.came.set()


async def ask_all(url: str, asks: Sequence[Ask], *, whole: bool = True) -> list[Answer]:
    """`whole`: waits for every answer's end. Otherwise all is over, and cut short, once every request has its first token or has failed."""
    client = Client(Target.parse(url))
    began_s = time.monotonic() + AHEAD_S
    answers = [Answer() for _ in asks]
    firsts = [_FirstEvent(answer, began_s + ask.at_s) for ask, answer in zip(asks, answers, strict=True)]
    tasks = [
        asyncio.create_task(_ask(client, ask, began_s + ask.at_s, answer, first))
        for ask, answer, first in zip(asks, answers, firsts, strict=True)
    ]
    try:
        if whole:
            await asyncio.gather(*tasks)
        else:
            await asyncio.gather(*(first.came.wait() for first in firsts))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.aclose()
    return answers


async def _ask(client: Client, ask: Ask, due_s: float, answer: Answer, first: _FirstEvent) -> None:
    await asyncio.sleep(due_s - time.monotonic())
    try:
        outcome = await client.exchange(client.target.request("POST", "/completions", ask.body), first)
        if outcome.failure is None:
            answer.ended_s = outcome.ended_s - due_s
        else:
            answer.first_s, answer.failure = None, f"{outcome.failure}: {outcome.said}"
    finally:
        first.came.set()
