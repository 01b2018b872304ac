"""An engine loop turned by hand, for tests that look between two steps."""

import queue

from pagoda_worker.channel import Down, Submitted, Up
from pagoda_worker.engine_loop import EngineLike, EngineLoop
from pagoda_worker.request import Request


class Turns:
    """An engine loop turned by hand."""

    def __init__(self, engine: EngineLike) -> None:
        self.inbox: queue.SimpleQueue[Down] = queue.SimpleQueue()
        self.sent: list[Up] = []
        self.loop = EngineLoop(engine, self.inbox, self.sent.append)

    def submit(self, *prompt_ids: int, request_id: str = "1:1", max_tokens: int = 100) -> None:
        self.inbox.put(Submitted([Request(request_id=request_id, prompt_ids=list(prompt_ids), max_tokens=max_tokens, ignore_eos=True)]))

    def turn(self) -> Up | None:
        """The last message sent so far."""
        self.loop.turn()
        return self.sent[-1] if self.sent else None
