"""One request's time, cut at shared boundaries: each boundary closes one phase and opens the next, so that the parts add up to the whole.

    receive │ prepare │ queue_wait │ route │ worker_queue │ prefill │ decode │ stream │
            body      priced,      placed  the worker     first     first    last     the last byte
            is here   it waits             has it         chunk     token    token    has left

No phase is what is left over: each begins at a stamp that somebody took. A request that ended early ends in the phase it had reached.
Pure; integer microseconds since the request's arrival.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pagoda_router.tracing.record import Attempt, GenerationTrace, RequestTrace, WorkerTimes

Process = Literal["router", "worker"]

WORKER_BOUNDARIES = (
    ("worker_queue", "received_us"),
    ("prefill", "first_scheduled_us"),
    ("decode", "first_token_us"),
    ("stream", "last_token_us"),
)
"""Phases that begin at a stamp of the worker's last word, in order. A new stamp is one more line here and one more slot of WorkerTimes."""
UPSTREAM = "upstream"
"""In place of route, worker_queue and prefill while the worker has not told them apart: a stream cut short, or an engine that died."""


class Phase(NamedTuple):
    name: str
    start_us: int
    end_us: int
    opened_by: Process
    """Whose clock the phase begins by."""


class Boundary(NamedTuple):
    opens: str
    at_us: int
    by: Process


def phases(trace: RequestTrace, end_s: float) -> tuple[Phase, ...]:
    """`end_s`: the end of the whole, on the router's clock. A boundary outside its neighbours (two clocks) moves to the nearest of them."""
    origin_us = _us(trace.received_s)
    end_us = max(0, _us(end_s) - origin_us)
    at_us = 0
    placed: list[Boundary] = []
    for boundary in _boundaries(trace):
        at_us = min(max(at_us, boundary.at_us - origin_us), end_us)
        placed.append(boundary._replace(at_us=at_us))
    ends_us = [boundary.at_us for boundary in placed[1:]] + [end_us]
    return tuple(Phase(boundary.opens, boundary.at_us, until_us, boundary.by) for boundary, until_us in zip(placed, ends_us, strict=True))


def deciding(trace: RequestTrace) -> GenerationTrace | None:
    """Of several prompts, the one whose last token came last: what the request waited for."""
    if len(trace.generations) == 1:
        return trace.generations[0]
    return max(trace.generations, key=_last_token_us, default=None)


def last_attempt(trace: RequestTrace) -> Attempt | None:
    generation = deciding(trace)
    return generation.attempts[-1] if generation is not None and generation.attempts else None


def overhead_us(trace: RequestTrace) -> int | None:
    """What the router added before the worker had the request: preparing, choosing, handing over. None: the worker did not tell.

    Waiting, for the client's body or for room on a worker, is not in it.
    """
    generation = deciding(trace)
    if generation is None or not generation.attempts or generation.queued_s is None or trace.body_s is None:
        return None
    attempt = generation.attempts[-1]
    times = attempt.times
    if times.clock is None or not times.told:
        return None
    prepared_s = generation.queued_s if trace.held_s is None else trace.held_s
    handed_over_us = times.clock.ours_us(times.received_us) - _us(attempt.placed_s)
    return max(0, _us(prepared_s) - _us(trace.body_s)) + max(0, handed_over_us)


def first_token_us(attempt: Attempt) -> int | None:
    """From its placement, on the worker's word."""
    times = attempt.times
    at_us = times.first_token_us or times.first_frame_us
    return None if times.clock is None or not at_us else max(0, times.clock.ours_us(at_us) - _us(attempt.placed_s))


def _boundaries(trace: RequestTrace) -> Iterator[Boundary]:
    yield Boundary("receive", _us(trace.received_s), "router")
    if trace.body_s is None:
        return
    yield Boundary("prepare", _us(trace.body_s), "router")
    generation = deciding(trace)
    queued_s = trace.held_s if trace.held_s is not None else generation.queued_s if generation is not None else None
    if queued_s is None:
        return
    yield Boundary("queue_wait", _us(queued_s), "router")
    if generation is None or not generation.attempts or generation.attempts[-1].failed:
        return
    attempt = generation.attempts[-1]
    found = list(_worker_boundaries(attempt.times))
    handed_over = bool(found) and found[0].opens == WORKER_BOUNDARIES[0][0]
    yield Boundary("route" if handed_over else UPSTREAM, _us(attempt.placed_s), "router")
    yield from found


def _worker_boundaries(times: WorkerTimes) -> Iterator[Boundary]:
    clock = times.clock
    if clock is None:
        return
    if times.told:
        for opens, stamp in WORKER_BOUNDARIES:
            is_last = stamp == "last_token_us"
            at_us = times.last_frame_us if is_last and times.cut_short and times.last_frame_us else getattr(times, stamp)
            if not at_us:
                return
            yield Boundary(opens, clock.ours_us(at_us), "worker")
    elif times.first_frame_us:
        yield Boundary("decode", clock.ours_us(times.first_frame_us), "worker")
        yield Boundary("stream", clock.ours_us(times.last_frame_us), "worker")


def _last_token_us(generation: GenerationTrace) -> int:
    if not generation.attempts:
        return 0
    times = generation.attempts[-1].times
    return times.clock.ours_us(times.last_token_us or times.last_frame_us) if times.clock is not None else 0


def _us(seconds: float) -> int:
    """Rounded down, as workers do, so that one moment is one number on both sides."""
    return int(seconds * 1e6)
