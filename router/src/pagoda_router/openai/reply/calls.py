"""A model's text → content and tool calls, in any of forms.py's ways to write them. Pure; reader.py feeds it.

What is no call after all comes out as content, marker and all; white space next to calls belongs to their form and is dropped. The result
does not depend on how the text is cut.
"""

from collections.abc import Callable
from enum import Enum

from pagoda_router.openai.reply.call_scanner import CallScanner
from pagoda_router.openai.reply.forms import CallForm
from pagoda_router.openai.reply.pieces import CallDelta, Pieces, add_call
from pagoda_router.text.stop import tail_that_begins


class _Mode(Enum):
    START = 0
    """Nothing but white space so far, in a form that starts bare."""
    TEXT = 1
    BRACKET = 2
    OBJECT = 3
    BEHIND = 4
    """An object is complete."""


class CallReader:
    def __init__(self, form: CallForm, *, known_names: frozenset[str], new_id: Callable[[], str], only_one: bool = False) -> None:
        """`only_one`: nothing behind the first call is wanted (`is_full`)."""
        self._form = form
        self._known_names = known_names
        self._new_id = new_id
        self._only_one = only_one
        self._mode = _Mode.START if form.starts_bare else _Mode.TEXT if form.marker else _Mode.BRACKET
        self._held = ""
        """In TEXT: what may begin a marker, and the white space before it. Elsewhere: the form since then, given back when it breaks."""
        self._scanner = CallScanner()
        self._is_behind_call = False
        """In TEXT: nothing but white space since a call."""
        self.calls = 0
        self.is_full = False

    def feed(self, text: str) -> Pieces:
        pieces = Pieces()
        while text and not self.is_full:
            text = self._step(text, pieces)
        return pieces

    def end(self) -> Pieces:
        """The text ends here: what was held and is no call is content."""
        pieces = Pieces()
        if self._mode is _Mode.OBJECT:
            left = "".join(self._scanner.held)
            if not self._scanner.is_open:
                self._content(pieces, self._held + left)
            elif left.strip():
                self._content(pieces, left)
        elif self._mode is _Mode.TEXT and self._is_behind_call and not self._held.strip():
            pass
        elif self._mode is not _Mode.BEHIND:
            self._content(pieces, self._held)
        self._held = ""
        return pieces

    def _step(self, text: str, pieces: Pieces) -> str:
        """Takes some of the text; the rest."""
        if self._mode is _Mode.TEXT:
            return self._text(text, pieces)
        if self._mode is _Mode.OBJECT:
            return self._object(text, pieces)
        char, rest = text[0], text[1:]
        self._held += char
        if self._mode is _Mode.BEHIND:
            return self._behind(char) + rest
        if char.isspace():
            return rest
        if self._mode is _Mode.START:
            if char == "{":
                self._held = self._held[:-1]
                self._begin_object(self._known_names)
                return text
            self._mode, again, self._held = _Mode.TEXT, self._held, ""
            return again + rest
        if char == self._form.bracket:
            self._begin_object()
            return rest
        return self._broken(pieces, self._held) + rest

    # ------------------------------------------------------------ text

    def _text(self, text: str, pieces: Pieces) -> str:
        marker, text = self._form.marker, self._held + text
        found = text.find(marker) if marker else -1
        if found >= 0:
            before = text[:found].rstrip()
            self._content(pieces, before)
            self._held = text[len(before) : found + len(marker)]
            self._mode = _Mode.BRACKET
            if not self._form.bracket:
                self._begin_object()
            return text[found + len(marker) :]
        cut = len(text) - (tail_that_begins(text, marker) if marker else 0)
        cut = len(text[:cut].rstrip())
        self._held = text[cut:]
        self._content(pieces, text[:cut])
        return ""

    def _content(self, pieces: Pieces, text: str) -> None:
        if text:
            pieces.content += text
            self._is_behind_call = False

    # ------------------------------------------------------------ calls

    def _begin_object(self, known_names: frozenset[str] | None = None) -> None:
        self._mode, self._scanner = _Mode.OBJECT, CallScanner(known_names)

    def _object(self, text: str, pieces: Pieces) -> str:
        scanner = self._scanner
        position = 0
        while position < len(text):
            was_open = scanner.is_open
            arguments, position = scanner.take(text, position)
            if scanner.is_open and not was_open:
                pieces.calls.append(CallDelta(self.calls, arguments, self._new_id(), scanner.name))
                self.calls += 1
                self._held = ""
            elif arguments:
                add_call(pieces.calls, CallDelta(self.calls - 1, arguments))
            if scanner.is_closed:
                self._mode, self._held = _Mode.BEHIND, ""
                self.is_full = self._only_one
                return text[position:]
            if scanner.is_broken:
                return self._broken(pieces, self._held, "".join(scanner.held)) + text[position:]
        return ""

    def _broken(self, pieces: Pieces, form: str, again: str = "") -> str:
        """It is no call: its marker is content, and what followed is read again as text."""
        self._content(pieces, form)
        self._mode, self._held = _Mode.TEXT, ""
        return again

    def _behind(self, char: str) -> str:
        """Between two objects, or behind the last one; what has to be read again as text."""
        here = self._held.lstrip()
        form = self._form
        if not here:
            return ""
        if form.separator and here == form.separator:
            self._begin_object()
            return ""
        if form.closing and here == form.closing:
            self._end_calls()
            return ""
        if form.closing.startswith(here):
            return ""
        again = self._held
        self._end_calls()
        return again

    def _end_calls(self) -> None:
        self._mode, self._held, self._is_behind_call = _Mode.TEXT, "", True


class WholeReplyCall:
    """The reply is the arguments of the one function that had to be called; a constraint sees to that."""

    def __init__(self, name: str, new_id: Callable[[], str]) -> None:
        self._name = name
        self._new_id = new_id
        self.calls = 0
        self.is_full = False

    def feed(self, text: str) -> Pieces:
        if self.calls:
            return Pieces(calls=[CallDelta(0, text)] if text else [])
        text = text.lstrip()
        if not text:
            return Pieces()
        self.calls = 1
        return Pieces(calls=[CallDelta(0, text, self._new_id(), self._name)])

    def end(self) -> Pieces:
        return Pieces()
