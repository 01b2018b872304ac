"""Asks a running server what the simulator's users ask, each at its time, and keeps how long the first token took. An open loop over HTTP.

Knows nothing of what is behind the address. Called by paced_fleet.py and tiny_workers.py.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _FirstEvent:
    at_s: float | None = None
    _seen: bytearray = field(default_factory=bytearray)

    def feed(self, body: bytes, now: float) -> None:
        if self.at_s is None:
            self._seen += body
            if b"data:" in self._seen:  # comments keep a connection alive, and are no token
                self.at_s = now


async def ask_all(url: str, asks: Sequence[Ask]) -> list[Answer]:
    client = Client(Target.parse(url))
    began_s = time.monotonic() + AHEAD_S
    try:
        return await asyncio.gather(*(_ask(client, ask, began_s + ask.at_s) for ask in asks))
    finally:
        await client.aclose()


async def _ask(client: Client, ask: Ask, due_s: float) -> Answer:
    await asyncio.sleep(due_s - time.monotonic())
    first = _FirstEvent()
    outcome = await client.exchange(client.target.request("POST", "/completions", ask.body), first)
    if outcome.failure is not None:
        return Answer(failure=f"{outcome.failure}: {outcome.said}")
    return Answer(None if first.at_s is None else first.at_s - due_s, outcome.ended_s - due_s)
