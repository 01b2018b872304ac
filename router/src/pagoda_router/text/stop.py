"""Stop strings in a stream of text pieces. Pure; openai/ runs one matcher per sequence that has stop strings.

The result does not depend on how the text is cut: the match that completes first wins, of two that complete together the longer.
"""

from collections.abc import Sequence


class StopMatcher:
    """Holds back only the longest tail that could still begin a stop string."""

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """The text that may leave. After a match (`matched`) the sequence is over and nothing more is fed."""
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            start, stop = match
            self.matched = stop
            self._held = ""
            return text[: start + len(stop)] if self._include_stop else text[:start]
        keep = max(tail_that_begins(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """The sequence ended by itself: what was held is ordinary text."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _end, start, stop = min(found)
        return start, stop


def tail_that_begins(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
