"""Running a Job: its generations through the dispatcher, their events into choices, deltas out as they arrive together.

The one loop that streams and whole answers share; it knows neither JSON nor HTTP. answers.py calls `run` with what to do with each batch.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest

from pagoda_router.dispatch.endings import raise_failure
from pagoda_router.errors import UpstreamFailed
from pagoda_router.generation import (
    Dispatcher,
    Embedded,
    Ended,
    Event,
    GenerationStream,
    PromptLogprobs,
    Started,
    Take,
    TokenLogprobs,
    Usage,
)
from pagoda_router.http.cohort import next_stage
from pagoda_router.openai.prepare import Job
from pagoda_router.openai.prompt_logprobs import echoed_entries
from pagoda_router.openai.sequence import Choice, Delta, ScoredPrompt
from pagoda_router.relays import Relayed

Deliver = Callable[[list[Delta]], Awaitable[None]]


class Progress:
    """The choices of a job and its bill so far."""

    def __init__(self, job: Job) -> None:
        kind = ScoredPrompt if job.scores_prompt else Choice
        self.choices = [
            kind(
                position * job.n + sequence,
                job.text,
                generation.prompt_ids,
                job.rules,
                wants_logprobs=job.wants_logprobs,
                echo=job.echoes[position] if job.echoes is not None else "",
                reply=job.reply,
                shows_token_ids=job.shows_token_ids,
            )
            for position, generation in enumerate(job.generations)
            for sequence in range(job.n)
        ]
        self._unfinished = [job.n] * len(job.generations)
        self._cached_tokens = [0] * len(job.generations)
        self._prompt_tokens = job.prompt_tokens
        self._n = job.n
        self._job = job
        self.prompt_logprobs: dict[int, Sequence[TokenLogprobs]] = {}
        """By position, as far as they were asked for and have come."""

    @property
    def usage(self) -> Usage:
        """A prompt counts once, however many choices continue it."""
        thinks = self._job.reply is not None and self._job.reply.thinks
        if len(self.choices) == 1:
            one = self.choices[0]
            return Usage(
                self._prompt_tokens,
                self._cached_tokens[0],
                one.completion_tokens,
                one.reasoning_tokens if thinks else None,
                one.draft_tokens,
                one.accepted_draft_tokens,
                one.drafts,
                one.accepted_by_place,
            )
        return Usage(
            self._prompt_tokens,
            sum(self._cached_tokens),
            sum(choice.completion_tokens for choice in self.choices),
            sum(choice.reasoning_tokens for choice in self.choices) if thinks else None,
            sum(choice.draft_tokens for choice in self.choices),
            sum(choice.accepted_draft_tokens for choice in self.choices),
            sum(choice.drafts for choice in self.choices),
            tuple(map(sum, zip_longest(*(choice.accepted_by_place for choice in self.choices), fillvalue=0))),
        )

    def is_finished(self, position: int) -> bool:
        return self._unfinished[position] == 0

    def apply(self, stream: GenerationStream, position: int, events: Sequence[Event]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if isinstance(event, (Started, PromptLogprobs, Embedded, Relayed)):
                self._saw(position, event)
                continue
            choice = self.choices[position * self._n + event.sequence]
            if choice.finish_reason is not None:
                continue  # was under way when a stop string was found
            if isinstance(event, Ended):
                self._saw_cached(position, event.sequence, event.usage.cached_tokens)
                raise_failure(event)
                delta = choice.end(event)
            else:
                delta = choice.feed(event)
                if not choice.is_plain and choice.is_cut:
                    stream.stop(event.sequence)
            if delta.finish_reason is not None:
                self._unfinished[position] -= 1
            if delta.text or delta.entries or delta.finish_reason is not None or delta.reasoning or delta.calls or delta.token_ids:
                deltas.append(delta)
        return deltas

    def _saw(self, position: int, event: Started | PromptLogprobs | Embedded | Relayed) -> None:
        """What is about a prompt."""
        if isinstance(event, Started):
            self._saw_cached(position, event.sequence, event.cached_tokens)
        elif isinstance(event, PromptLogprobs):
            self._saw_logprobs(position, event.tokens)

    def _saw_logprobs(self, position: int, known: Sequence[TokenLogprobs]) -> None:
        job = self._job
        self.prompt_logprobs[position] = known
        if job.echoes_logprobs:
            ids, skips = job.generations[position].prompt_ids, job.rules.skip_special_tokens
            entries = echoed_entries(ids, known, job.text, skip_special_tokens=skips)
            for sequence in range(self._n):
                self.choices[position * self._n + sequence].echo_entries(entries)

    def _saw_cached(self, position: int, sequence: int, cached_tokens: int) -> None:
        # The sequences of a prompt share its blocks; what the first found is the prompt's, the others also find the first one's work.
        if sequence == 0:
            self._cached_tokens[position] = cached_tokens


async def run(job: Job, dispatcher: Dispatcher, progress: Progress, deliver: Deliver, *, in_flight: int, take: Take | None = None) -> None:
    """Returns when every choice has finished; raises a RouterError when one cannot. Work still running is cancelled either way.
    `take`: what a lone prompt's stream is tapped with, where its tokens may be written as they come."""
    if len(job.generations) == 1:
        await _follow(job, 0, dispatcher, progress, deliver, take)
    else:
        await _run_batched(job, dispatcher, progress, deliver, in_flight)


async def _follow(job: Job, position: int, dispatcher: Dispatcher, progress: Progress, deliver: Deliver, take: Take | None = None) -> None:
    async with dispatcher.generate(job.generations[position]) as stream:
        if take is not None:
            stream.tap(take)
        async for events in stream:
            deltas = progress.apply(stream, position, events)
            if deltas:
                await deliver(deltas)
            if progress.is_finished(position):
                await next_stage()  # answers that came in one frame are all written before what comes after the last byte
                return
    raise UpstreamFailed("the worker's stream ended early: send the request again")


async def _run_batched(job: Job, dispatcher: Dispatcher, progress: Progress, deliver: Deliver, in_flight: int) -> None:
    """One task per prompt, `in_flight` at a time, into one bounded queue: a slow client holds the streams back."""
    queue: asyncio.Queue[list[Delta] | Exception] = asyncio.Queue(maxsize=in_flight)
    slots = asyncio.Semaphore(in_flight)

    async def follow(position: int) -> None:
        try:
            async with slots:
                await _follow(job, position, dispatcher, progress, queue.put)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(follow(position)) for position in range(len(job.generations))]
    unfinished = len(progress.choices)
    try:
        while unfinished:
            # Everything that is there leaves together; tokens that came before a failure leave before it.
            deltas: list[Delta] = []
            failure: Exception | None = None
            while failure is None and (not deltas or not queue.empty()):
                item = await queue.get()
                if isinstance(item, Exception):
                    failure = item
                else:
                    deltas.extend(item)
            unfinished -= sum(delta.finish_reason is not None for delta in deltas)
            if deltas:
                await deliver(deltas)
            if failure is not None:
                raise failure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
