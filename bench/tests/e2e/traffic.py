"""Steady traffic while a test changes the cluster: every request is recorded, with the phase it began in, and judged at the end.

The shape is that of a client who never retries: one request after the other on each of a few streams, unmodified `openai` package, every
answer checked. A request is bad when it raises, when its stream ends without a finish reason, or when its sum is wrong.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai


@dataclass(frozen=True, slots=True)
class Outcome:
    phase: str
    began_s: float
    ttft_s: float | None
    duration_s: float
    trouble: str
    """Empty: answered rightly."""


@dataclass
class Traffic:
    base_url: str
    api_key: str
    model: str
    streams: int = 2
    outcomes: list[Outcome] = field(default_factory=list)
    phase: str = "before"
    _stopping: threading.Event = field(default_factory=threading.Event)

    def mark(self, phase: str) -> None:
        """Requests that begin from now on belong to this phase."""
        self.phase = phase

    def bad(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.trouble]

    def count(self, phase: str | None = None) -> int:
        return sum(1 for outcome in list(self.outcomes) if phase is None or outcome.phase == phase)

    def report(self) -> str:
        lines = []
        for phase in dict.fromkeys(outcome.phase for outcome in self.outcomes):
            those = [outcome for outcome in self.outcomes if outcome.phase == phase]
            slowest = max(outcome.duration_s for outcome in those)
            lines.append(f"{phase}: {len(those)} requests, {sum(bool(o.trouble) for o in those)} bad, slowest {slowest:.2f} s")
        causes = Counter(outcome.trouble for outcome in self.bad())
        return "\n".join([*lines, *(f"{count} × {cause}" for cause, count in causes.most_common(8))])

    async def _run(self) -> None:
        async with openai.AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0, timeout=60) as client:
            await asyncio.gather(*(self._one_stream(client, number) for number in range(self.streams)))

    async def _one_stream(self, client: openai.AsyncOpenAI, number: int) -> None:
        turn = number
        while not self._stopping.is_set():
            turn += self.streams
            self.outcomes.append(await self._ask(client, 10 + turn % 70, 10 + turn * 7 % 20))

    async def _ask(self, client: openai.AsyncOpenAI, a: int, b: int) -> Outcome:
        phase, began_s, ttft_s, text, finish, trouble = self.phase, time.monotonic(), None, "", None, ""
        try:
            stream = await client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": f"What is {a} + {b}?"}], temperature=0, stream=True
            )
            async for chunk in stream:
                ttft_s = ttft_s if ttft_s is not None else time.monotonic() - began_s
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
        except openai.OpenAIError as error:
            trouble = f"{type(error).__name__}: {error}"
        if not trouble and finish is None:
            trouble = "the stream ended without a finish reason"
        if not trouble and str(a + b) not in text:
            trouble = f"wrong answer {text!r} to {a} + {b}"
        return Outcome(phase, began_s, ttft_s, time.monotonic() - began_s, trouble)


@contextmanager
def steady_traffic(base_url: str, api_key: str, model: str, *, streams: int = 2) -> Iterator[Traffic]:
    """Runs from entry to exit; at exit every request that began has ended."""
    traffic = Traffic(base_url, api_key, model, streams)
    thread = threading.Thread(target=lambda: asyncio.run(traffic._run()), name="traffic")
    thread.start()
    try:
        yield traffic
    finally:
        traffic._stopping.set()
        thread.join(timeout=90)
        print(traffic.report())
