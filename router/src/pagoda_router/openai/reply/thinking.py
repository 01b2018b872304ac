"""<think>…</think> at the beginning of a reply, split from what follows (Qwen3, DeepSeek R1 and their like). Pure; reader.py feeds it.

The result does not depend on how the text is cut, and the parts with their tags join to the text: nothing is trimmed inside or behind them.
"""

from enum import Enum

from pagoda_router.text.stop import tail_that_begins

OPEN, CLOSE = "<think>", "</think>"


class _Mode(Enum):
    UNDECIDED = 0
    """Only white space and a part of the opening tag so far."""
    THINKING = 1
    ANSWERING = 2


class ThinkingSplitter:
    def __init__(self, *, opened: bool) -> None:
        """`opened`: the prompt ends inside the thinking. A tag that the model repeats is dropped then."""
        self._opened = opened
        self._mode = _Mode.UNDECIDED
        self._held = ""
        self.has_thought = False

    @property
    def is_done(self) -> bool:
        """Only the answer comes from here on."""
        return self._mode is _Mode.ANSWERING

    def feed(self, text: str) -> tuple[str, str]:
        """(thinking, answer) that may leave."""
        if self._mode is _Mode.ANSWERING:
            return "", text
        self._held += text
        if self._mode is _Mode.UNDECIDED and not self._decided():
            return "", ""
        if self._mode is _Mode.THINKING:
            return self._think()
        answer, self._held = self._held, ""
        return "", answer

    def end(self) -> tuple[str, str]:
        """The text ends here: what was held is what it would have gone on to be."""
        held, self._held = self._held, ""
        is_thought = self._mode is _Mode.THINKING or (self._mode is _Mode.UNDECIDED and self._opened)
        return (held, "") if is_thought else ("", held)

    def _decided(self) -> bool:
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._held = start[len(OPEN) :]
            self._mode = _Mode.THINKING
        elif OPEN.startswith(start):
            return False
        else:
            self._mode = _Mode.THINKING if self._opened else _Mode.ANSWERING
        self.has_thought = self._mode is _Mode.THINKING
        return True

    def _think(self) -> tuple[str, str]:
        thought, close, answer = self._held.partition(CLOSE)
        if close:
            self._held, self._mode = "", _Mode.ANSWERING
            return thought, answer
        keep = tail_that_begins(self._held, CLOSE)
        cut = len(self._held) - keep
        thought, self._held = self._held[:cut], self._held[cut:]
        return thought, ""
