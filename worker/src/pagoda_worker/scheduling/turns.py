"""Whose step it is while some requests must not be computed together with others: theirs, one at a time, or everybody else's, in turn.

Every second step at least is everybody else's, however many run alone, so nobody can slow down the others by more than that. Called by the
scheduler, only while such requests are here. Knows neither blocks nor budgets.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pagoda_worker.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Turn:
    only: Sequence | None = None
    """The step computes this one and nothing else. None: all that may share a step."""

    def includes(self, sequence: Sequence) -> bool:
        return not sequence.request.runs_alone if self.only is None else sequence is self.only


SHARED = Turn()


class Turns:
    def __init__(self) -> None:
        self._was_alone = False
        self._last = (0, -1, 0)
        """Order of the one that ran alone last: the next one in order is next."""

    def next(self, running: Iterable[Sequence], first_waiting: Sequence | None) -> Turn:
        """Among those that have something to compute."""
        ready = [sequence for sequence in running if sequence.remaining > 0]
        if first_waiting is not None and not first_waiting.pending:
            ready.append(first_waiting)
        alone = sorted((sequence for sequence in ready if sequence.request.runs_alone), key=lambda sequence: sequence.order)
        if not alone or (self._was_alone and len(alone) < len(ready)):
            self._was_alone = False
            return SHARED
        self._was_alone = True
        found = next((sequence for sequence in alone if sequence.order > self._last), alone[0])
        self._last = found.order
        return Turn(found)
