"""Requests that came together go through the router's code together, a stage at a time: all are parsed, then all are tokenized, and so on.

Cohort scheduling (Larus and Parkes, "Using Cohort Scheduling to Enhance Server Performance", USENIX 2002). A request runs some thousand
functions once. One request after the other, each finds the caches full of what the last one needed at its end; a stage at a time, all but
the first of a cohort find code and tables where the one before left them. Owned by a listener's connections, which know who came.
"""

import types
from collections.abc import Generator


class Cohort:
    """Of one listener."""

    __slots__ = ("coming",)

    def __init__(self) -> None:
        self.coming = 0
        """Requests that have come, also those that have not run yet, and have not gone through all stages."""


class Member:
    """One request."""

    __slots__ = ("_cohort", "_is_in")

    def __init__(self, cohort: Cohort) -> None:
        self._cohort = cohort
        self._is_in = True
        cohort.coming += 1

    @property
    def in_company(self) -> bool:
        """Others are on their way: at the end of a stage `next_stage` lets them come as far. Alone it would only cost time."""
        return self._is_in and self._cohort.coming > 1

    def leave(self) -> None:
        """Through its last stage, or ended before. Once is enough."""
        self._cohort.coming -= self._is_in
        self._is_in = False


def alone() -> Member:
    """Of a cohort of its own: for servers that do not say who came."""
    return Member(Cohort())


@types.coroutine
def next_stage() -> Generator[None, None, None]:
    """Awaited: the task goes on when all that are ready to run have run, as after `asyncio.sleep(0)`, with one coroutine less."""
    yield
