"""A stream that outlives its worker: what was sent is kept, and when the worker is lost the rest is made elsewhere. Tokens only.

    worker 1: prompt ──▶ t1 t2 t3 ✗
    worker 2: prompt + resume_ids t1 t2 t3 ──▶ t4 t5 … end          (one such request per open sequence)

The noise of sampling hangs on (seed, output position, token), grammars are replayed by the worker, penalties and min_tokens count what is
resumed as output: so the rest is what it would have been. The dispatcher makes one per generation and says how to go on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from pagoda_router.backends.base import BackendStream
from pagoda_router.generation import Ended, EndReason, Event, Generation, Started, Take, TakeRelayed, Tokens, Usage

MOST_REPLAYS = 3
"""Of one sequence: one that kills its workers must not tour the fleet."""
GoOn = Callable[[Generation, BackendStream, Ended], Awaitable[BackendStream]]
"""The rest of one sequence, the stream that was lost and how it ended → a stream with output. Raises RouterError when it may not."""


class ContinuedStream:
    """Implements GenerationStream. Read by one task."""

    def __init__(self, generation: Generation, first: BackendStream, go_on: GoOn) -> None:
        self.worker = first.worker
        self._generation = generation
        self._first = first
        self._events = aiter(first)
        self._go_on = go_on
        self._emitted: list[list[int]] = [[] for _ in range(generation.n)]
        self._open = set(range(generation.n))
        self._cached_tokens: int | None = None
        """Of the prompt, at the first worker: what a replay finds there again is nobody's saving."""
        self._parts: dict[int, BackendStream] = {}
        """Sequence → who makes the rest of it."""
        self._followers: dict[int, asyncio.Task[None]] = {}
        self._arrived: asyncio.Queue[list[Event] | BaseException] | None = None
        """Made with the first follower: nearly all streams have none."""
        self._is_ending = False
        """By our own will: an end is an end."""

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._followers:
            batch = self._sift(await anext(self._events))
            if batch:
                return batch
        while True:
            if not self._open and self._arrivals.empty():
                raise StopAsyncIteration
            item = await self._arrivals.get()
            if isinstance(item, BaseException):
                raise item
            if batch := [event for event in item if event.sequence in self._open]:
                self._open.difference_update(event.sequence for event in batch if type(event) is Ended)
                return batch

    def stop(self, sequence: int) -> None:
        self._open.discard(sequence)
        if sequence not in self._followers:
            self._first.stop(sequence)
            return
        if (part := self._parts.get(sequence)) is not None:
            part.stop(0)
        self._followers[sequence].cancel()
        self._arrivals.put_nowait([])  # its reader may wait, and nothing else may come

    def tap(self, take: Take) -> None:
        def taken(tokens: Tokens) -> bool:
            if not take(tokens):
                return False
            self._emitted[tokens.sequence] += tokens.token_ids
            return True

        self._first.tap(taken)

    def tap_relayed(self, take: TakeRelayed) -> None:
        self._first.tap_relayed(take)

    def end_all(self, reason: EndReason, detail: str) -> None:
        """Every open sequence ends now, for its reader and on its worker. Those that wait for a place are the dispatcher's to end."""
        self._is_ending = True
        for stream in (self._first, *self._parts.values()):
            stream.end_all(reason, detail)

    async def leave(self) -> None:
        """Nobody reads on: what still runs is cancelled wherever it runs."""
        self._is_ending = True
        for stream in (self._first, *self._parts.values()):
            stream.abandon()
        for follower in self._followers.values():
            follower.cancel()
        if self._followers:
            await asyncio.gather(*self._followers.values(), return_exceptions=True)

    # ------------------------------------------------------------ parts

    @property
    def _arrivals(self) -> asyncio.Queue[list[Event] | BaseException]:
        assert self._arrived is not None, "there are followers"
        return self._arrived

    def _sift(self, events: list[Event]) -> list[Event]:
        """Keeps what a replay would need. Ends that are a lost worker's are taken out, and begin replays of all that is open instead."""
        lost: Ended | None = None
        for event in events:
            if type(event) is Tokens:
                self._emitted[event.sequence] += event.token_ids
            elif type(event) is Ended:
                if self._is_worth_a_replay(event, self._first):
                    lost = event
                else:
                    self._open.discard(event.sequence)
            elif type(event) is Started and self._cached_tokens is None:
                self._cached_tokens = event.cached_tokens
        if lost is None:
            return events
        self._first.abandon()  # a worker that drains may still run the others
        if self._arrived is None:
            self._arrived = asyncio.Queue()
        for sequence in sorted(self._open):
            follow = self._follow(sequence, self._first, lost)
            follower = self._followers[sequence] = asyncio.create_task(follow, name=f"replay {self._generation.request_id}")
            follower.add_done_callback(self._followed)
        return [event for event in events if type(event) is not Ended or event.sequence not in self._open]

    def _followed(self, follower: "asyncio.Task[None]") -> None:
        if not follower.cancelled() and (error := follower.exception()) is not None:
            self._arrivals.put_nowait(error)

    def _is_worth_a_replay(self, event: Ended, stream: BackendStream) -> bool:
        is_loss = event.reason in (EndReason.SHUTDOWN, EndReason.TIMED_OUT) or (stream.lost and event.reason is EndReason.ENGINE_ERROR)
        return is_loss and not (self._is_ending or self._generation.embedding or self._generation.relay is not None)

    async def _follow(self, sequence: int, lost: BackendStream, end: Ended) -> None:
        """Makes the rest of one sequence arrive, on as many workers as it takes and the dispatcher allows."""
        emitted = self._emitted[sequence]
        part: BackendStream | None = None
        try:
            for _ in range(MOST_REPLAYS):
                rest = rest_of(self._generation, sequence, emitted)
                if rest is None:
                    usage = Usage(len(self._generation.prompt_ids), self._cached_tokens or 0, len(emitted))
                    self._arrivals.put_nowait([Ended(sequence, EndReason.LENGTH, usage)])
                    return
                part = self._parts[sequence] = await self._go_on(rest, lost, end)
                again = await self._relay(sequence, part)
                if again is None:
                    return
                lost, end = part, again
            self._arrivals.put_nowait([replace(end, sequence=sequence)])
        finally:
            if part is not None:
                part.abandon()

    async def _relay(self, sequence: int, part: BackendStream) -> Ended | None:
        """Until the part ends; returns how, when it was lost too."""
        async for events in part:
            batch: list[Event] = []
            for event in events:
                if type(event) is Tokens:
                    self._emitted[sequence] += event.token_ids
                    batch.append(Tokens(sequence, event.token_ids, event.logprobs))
                elif type(event) is Ended:
                    if self._is_worth_a_replay(event, part):
                        self._arrivals.put_nowait(batch)
                        return event
                    cached = event.usage.cached_tokens if self._cached_tokens is None else self._cached_tokens
                    batch.append(replace(event, sequence=sequence, usage=replace(event.usage, cached_tokens=cached)))
            self._arrivals.put_nowait(batch)
        return None


def rest_of(generation: Generation, sequence: int, emitted: list[int]) -> Generation | None:
    """What asks for the rest of one sequence after these tokens; None: there is none, it has reached its limit."""
    if len(emitted) >= generation.max_tokens:
        return None
    sampling = generation.sampling
    if sampling.seed is not None and sequence:
        sampling = replace(sampling, seed=sampling.seed + sequence)  # as a worker seeds the sequences of one request
    return replace(generation, n=1, sampling=sampling, prompt_logprobs=None, resume_ids=tuple(emitted))
