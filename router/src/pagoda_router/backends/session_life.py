"""How long the parts of a session may take, what breaks one, and what its end is called in a sentence.

Knows no link: pagoda.py runs its sessions with these.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from pagoda_router.backends.session import OpenSession

USUAL_BLOCK_SIZE = 16
"""What workers use unless told otherwise; in force until one has said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTiming:
    """Seconds. Tests shorten them."""

    welcome_s: float = 5.0
    """From connecting to Welcome."""
    ping_every_s: float = 2.0
    silent_pings: int = 3
    """Pings in a row during which nothing at all arrived: the session counts as broken."""
    describe_s: float = 30.0
    """Of Describe, and of fetching one artifact."""
    first_backoff_s: float = 0.2
    last_backoff_s: float = 5.0
    starting_backoff_s: float = 0.5
    """The longest after a refused connection: a worker that starts, or fetches its model, is taken up at once when it listens."""


class SessionBroken(Exception):
    pass


async def keep_pinging(current: Callable[[], OpenSession | None], timing: LinkTiming) -> None:
    """Until the session stays silent through so many pings that it counts as broken: raises SessionBroken."""
    silent, seen = 0, -1
    while True:
        await asyncio.sleep(timing.ping_every_s)
        session = current()
        if session is None:
            continue  # the welcome has its own time limit
        silent = silent + 1 if session.messages_seen == seen else 0
        if silent >= timing.silent_pings:
            raise SessionBroken(f"it has been silent for {silent * timing.ping_every_s:.0f} s")
        seen = session.messages_seen
        session.ping()


async def first_to_end(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs them together; when one ends or raises, the others are cancelled and awaited, and its exception is this one's."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def sentence_of(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        details = error.details() or error.code().name
        if "failed to connect" in details:
            return f"it cannot be reached ({details.rpartition(': ')[2]})"
        return details if error.code() is grpc.StatusCode.UNAVAILABLE else f"{error.code().name}: {details}"
    if isinstance(error, DecodeError):
        return "it sent what is no message of this protocol"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return str(error)
