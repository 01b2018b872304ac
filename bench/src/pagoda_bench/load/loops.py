"""The two ways to load a server: a closed loop of users who wait for their answers, and an open loop whose requests come when they come.

Owns the sending; records what happened. What the figures mean is measure.py's.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pagoda_bench.load.client import Client
from pagoda_bench.load.prompts import Dialogue, Prompts
from pagoda_bench.load.reading import StreamReading
from pagoda_bench.load.records import Record, Window


@dataclass(slots=True)
class Progress:
    """Read by whoever draws it."""

    total: int | None
    ended: int = 0
    """Conversations, like the total."""
    failed: int = 0
    """Requests."""
    in_flight: int = 0
    chunks: int = 0


@dataclass(slots=True)
class LoopRun:
    window: Window
    records: list[Record] = field(default_factory=list)


class Sender:
    """Sends turns one after another and records them."""

    def __init__(self, client: Client, prompts: Prompts, progress: Progress, *, name: str, keep_text: bool) -> None:
        """`name` opens every request id: no two senders may have the same, or a server's log could not tell their requests apart."""
        self.records: list[Record] = []
        self.progress = progress
        self._client = client
        self._prompts = prompts
        self._name = name
        self._keep_text = keep_text

    async def converse(self, dialogue: Dialogue, name: str, due_s: float, *, warm: bool = False) -> None:
        """All turns of one user; a failed one ends the conversation."""
        try:
            await self._turns(dialogue, name, due_s, warm=warm)
        finally:
            self.progress.ended += 1

    async def _turns(self, dialogue: Dialogue, name: str, due_s: float, *, warm: bool) -> None:
        answer, number = "", 0
        while not dialogue.is_over:
            if number:
                due_s = time.monotonic() + dialogue.pause_s
                await asyncio.sleep(dialogue.pause_s)
            turn = f".{number}" if len(dialogue.plan.turns) > 1 else ""
            record, answer = await self._turn(dialogue, answer, f"{self._name}-{name}{turn}", due_s)
            record.warm = warm
            self.records.append(record)
            if record.error is not None:
                return
            number += 1

    async def _turn(self, dialogue: Dialogue, answer: str, name: str, due_s: float) -> tuple[Record, str]:
        request = dialogue.next(answer)
        reading = StreamReading(keep_text=self._keep_text or len(dialogue.plan.turns) > 1)
        self.progress.in_flight += 1
        try:
            payload = self._client.target.request("POST", self._prompts.path, request.body, request_id=name)
            outcome = await self._client.exchange(payload, reading)
        finally:
            self.progress.in_flight -= 1
        failure = outcome.failure or reading.failure
        usage, text = reading.usage, "".join(reading.texts or ())
        self.progress.failed += failure is not None
        self.progress.chunks += len(reading.arrivals)
        record = Record(
            name=name,
            due_s=due_s,
            sent_s=outcome.sent_s,
            ended_s=outcome.ended_s,
            arrivals=reading.arrivals,
            finished_s=reading.finished_s,
            prompt_tokens_asked=request.prompt_tokens,
            output_tokens_asked=request.output_tokens,
            prompt_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.prompt_tokens_details.cached_tokens if usage and usage.prompt_tokens_details else None,
            error=failure,
            detail="" if failure is None else (reading.error or outcome.said),
        )
        if self._keep_text:
            record.client_output_tokens = self._prompts.filler.count(text)
        return record, text


async def closed_loop(
    sender: Sender, dialogues: Iterator[Dialogue], *, concurrency: int, warm_up: bool, ramp_s: float, duration_s: float | None
) -> LoopRun:
    """`concurrency` users, each with one request in flight, until `dialogues` end or nobody may begin another after `duration_s`.

    Users start over `ramp_s`. What begins during it counts for nothing, nor, with `warm_up`, does each user's first conversation. The
    window begins when the concurrency is reached and the last warm-up has ended, and ends when the first user has nothing more to ask.
    """
    still_warming = concurrency if warm_up else 0
    full = time.monotonic() + ramp_s
    deadline = full + duration_s if duration_s is not None else float("inf")
    window_start: float | None = None if warm_up else full
    first_idle: float | None = None

    async def user(number: int) -> None:
        nonlocal still_warming, window_start, first_idle, deadline
        await asyncio.sleep(ramp_s * number / concurrency)
        for count, dialogue in enumerate(dialogues):
            now = time.monotonic()
            await sender.converse(dialogue, f"u{number}-{count}", now, warm=now < full or (warm_up and count == 0))
            if warm_up and count == 0:
                still_warming -= 1
                if still_warming == 0:
                    window_start = time.monotonic()
                    deadline = window_start + duration_s if duration_s is not None else deadline
            if window_start is not None and time.monotonic() >= deadline:
                break
        first_idle = first_idle or time.monotonic()

    await asyncio.gather(*(user(number) for number in range(concurrency)))
    return LoopRun(_closed_window(sender.records, window_start, first_idle or full), sender.records)


def _closed_window(records: Sequence[Record], start_s: float | None, first_idle_s: float) -> Window:
    """Whole after the warm-up when no request began and ended at full concurrency."""
    counted = [record for record in records if not record.warm]
    if start_s is not None and any(record.due_s >= start_s and record.ended_s <= first_idle_s for record in counted):
        return Window(start_s, first_idle_s)
    if not counted:
        return Window(first_idle_s, first_idle_s, is_steady=False)
    return Window(min(record.due_s for record in counted), max(record.ended_s for record in counted), is_steady=False)


async def open_loop(sender: Sender, due: Sequence[float], dialogues: Iterator[Dialogue], *, warm_up_s: float) -> LoopRun:
    """Sends one dialogue at each of `due` (seconds after the start, ascending), whatever became of those before it.

    The window begins `warm_up_s` after the start and ends with the last arrival; what is still on its way then is waited for and counts.
    """
    loop = asyncio.get_running_loop()
    ready = list(zip(due, dialogues, strict=False))  # made before the clock starts
    tasks: list[asyncio.Task[None]] = []
    all_sent = asyncio.Event()
    start = time.monotonic() + 0.05
    window = Window(start + warm_up_s, start + due[-1] + 1e-3)

    def send(number: int) -> None:
        due_s = start + ready[number][0]
        tasks.append(loop.create_task(sender.converse(ready[number][1], f"o{number}", due_s, warm=not window.holds(due_s))))
        if number == len(ready) - 1:
            all_sent.set()

    times = [start + at for at, _ in ready]
    stop = threading.Event()
    pacer = threading.Thread(target=_pace, args=(times, lambda number: loop.call_soon_threadsafe(send, number), stop), daemon=True)
    pacer.start()
    try:
        await all_sent.wait()
        await asyncio.gather(*tasks)
    finally:
        # cancelled by Ctrl-C, the thread must not call into a loop that is gone
        stop.set()
        pacer.join()
    return LoopRun(window, sender.records)


def _pace(due_s: Sequence[float], send: Callable[[int], object], stop: threading.Event) -> None:
    """In a thread, because an event loop's timers count in milliseconds and this wait in microseconds."""
    for number, at_s in enumerate(due_s):
        left_s = at_s - time.monotonic()
        if stop.wait(left_s) if left_s > 0 else stop.is_set():
            return
        send(number)
