"""How many sequences routers may have on a worker: as many as its batch takes, and those that end before new ones could come. Pure.

Credits bound memory alone: where requests are short, many more fit than a batch takes, and on the worker it is first come, first served. So
what would only wait there waits here, in turn. A worker's link owns one, tells it what it hears, and asks before each placement.

    room  = everybody's sequences < max_running + spare      others' by the worker's last state, own as of now
            or own sequences < max_running / routers         so that who came first cannot keep the other routers out
    spare = max_running / mean answer × steps until a new one could take an ended one's place
"""

import math

UNKNOWN_ANSWER_TOKENS = 256
"""Until one has ended."""
SMOOTHING = 1 / 32
"""Of the newest answer in their mean length."""
TURNAROUND_STEPS = 2.0
"""An engine plans a step ahead: what comes during a step joins the next but one."""
TURNAROUND_MS = 20.0
"""From the frame that tells of an end to the submit's arrival, on a busy router and another node."""
UNKNOWN_STEP_MS = 20.0


class BatchDepth:
    def __init__(self, max_running: int = 0) -> None:
        self.max_running = max_running
        """0: not told, and nothing is bounded."""
        self._answer_tokens = 0.0
        self._others = 0
        self._routers = 1

    def told(self, sequences: int, own: int, routers: int) -> None:
        """A state of the worker: all routers' sequences there, running and waiting, of which `own` are this router's.

        `routers`: that share it, this one included. 0: it does not say so (an older one), and each router bounds its own.
        """
        self._routers = max(1, routers)
        self._others = max(0, sequences - own) if routers > 1 else 0

    def ended(self, output_tokens: int) -> None:
        """A sequence of this router's, on this worker."""
        tokens, old = max(1, output_tokens), self._answer_tokens
        self._answer_tokens = tokens if old == 0 else old + SMOOTHING * (tokens - old)

    def has_room(self, own: int, step_ms: float, yielding: int = 0) -> bool:
        """For one request, whatever its `n`: else it would starve. `own`: sequences of this router there now. `yielding`: those of them
        that the worker interrupts for this request. `step_ms`: of a decode step there; 0: not known."""
        if not self.max_running:
            return True
        own -= yielding
        return self._others + own < self.max_running + self.spare(step_ms) or own * self._routers < self.max_running

    def spare(self, step_ms: float) -> int:
        """Sequences that wait on the worker so that its batch stays full."""
        steps = TURNAROUND_STEPS + TURNAROUND_MS / (step_ms or UNKNOWN_STEP_MS)
        ended = self.max_running * steps / (self._answer_tokens or UNKNOWN_ANSWER_TOKENS)
        return math.ceil(min(self.max_running, ended))
