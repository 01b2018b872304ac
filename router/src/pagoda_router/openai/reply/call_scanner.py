"""One {"name": …, "arguments": {…}} of a model's text, read as it comes. Pure; calls.py makes one per object.

A call is opened as soon as its name is known and its arguments begin; from then on they leave as the model writes them. Before that nothing
leaves, so that an object that is none can still be given back as text.
"""

import json
import re
from enum import Enum

NAME = "name"
ARGUMENTS = frozenset({"arguments", "parameters"})
"""Qwen and Mistral say the first, Llama the second."""
LONGEST_HEAD_CHARS = 16384
"""Before the call is opened: a longer text is no call. Bounds what is held back, and read again as text."""
_SPACE = " \t\r\n"
_PUNCTUATION = frozenset("{}[]:,+-." + _SPACE)
"""Besides letters and digits all that JSON has outside of strings."""
_PLAIN = re.compile(r'[^"\\]*')
"""Of a string, what can neither end it nor change what follows: most of most arguments, taken at once."""
_NAME = re.compile(r"[\w.:/-]{1,128}")


class _At(Enum):
    START = 0
    FIRST_KEY = 1
    NEXT_KEY = 2
    KEY = 3
    COLON = 4
    VALUE = 5
    IN_VALUE = 6
    AFTER_VALUE = 7
    CLOSED = 8
    BROKEN = 9


class CallScanner:
    def __init__(self, known_names: frozenset[str] | None = None) -> None:
        """`known_names`: an object with another name is no call. None: any name will do."""
        self._known_names = known_names
        self._at = _At.START
        self._key = ""
        self._value: list[str] = []
        self._depth = 0
        self._in_string = self._is_escaped = False
        self._arguments: str | None = None
        """Complete, while the name is not known yet."""
        self._streams = False
        """The value that is being read leaves as it comes."""
        self.name: str | None = None
        self.is_open = False
        self.held: list[str] = []
        """What is not part of an open call's arguments, and would be text if the object breaks."""

    @property
    def is_closed(self) -> bool:
        return self._at is _At.CLOSED

    @property
    def is_broken(self) -> bool:
        """The last character fits no call; it is in `held`."""
        return self._at is _At.BROKEN

    def take(self, text: str, position: int) -> tuple[str, int]:
        """Reads on from there: the arguments that leave, and the position behind what was read."""
        if self._streams and self._in_string and not self._is_escaped:
            plain = _PLAIN.match(text, position)
            if plain is not None and plain.end() > position:
                return plain.group(), plain.end()
        return self._feed(text[position]), position + 1

    def _feed(self, char: str) -> str:
        if not self._streams:
            self.held.append(char)
            if len(self.held) > LONGEST_HEAD_CHARS:
                self._at = _At.BROKEN
                return ""
        if self._at is _At.IN_VALUE:
            return self._in_value(char)
        if self._at is _At.KEY:
            self._read_key(char)
        elif char not in _SPACE:
            return self._between(char)
        return ""

    def _between(self, char: str) -> str:
        at = self._at
        if at is _At.VALUE:
            return self._begin_value(char)
        if at is _At.START and char == "{":
            self._at = _At.FIRST_KEY
        elif at in (_At.FIRST_KEY, _At.NEXT_KEY) and char == '"':
            self._at, self._value = _At.KEY, [char]
        elif at is _At.COLON and char == ":":
            self._at = _At.VALUE
        elif at is _At.AFTER_VALUE and char == ",":
            self._at = _At.NEXT_KEY
        elif at is _At.AFTER_VALUE and char == "}":
            return self._close()
        else:
            self._at = _At.BROKEN
        return ""

    def _close(self) -> str:
        if self.is_open:
            self._at = _At.CLOSED
            return ""
        if self.name is None:
            self._at = _At.BROKEN
            return ""
        arguments = "{}" if self._arguments is None else self._arguments
        self._open()
        self._at = _At.CLOSED
        return arguments

    def _open(self) -> None:
        self.is_open = True
        self.held.clear()

    # ------------------------------------------------------------ strings

    def _ends_string(self, char: str) -> bool:
        """Follows one character inside of a string."""
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        else:
            return char == '"'
        return False

    def _read_key(self, char: str) -> None:
        self._value.append(char)
        if self._ends_string(char):
            key = _decoded("".join(self._value))
            self._key = key if isinstance(key, str) else ""
            self._at = _At.COLON

    # ------------------------------------------------------------ values

    def _begin_value(self, char: str) -> str:
        self._at, self._value, self._depth = _At.IN_VALUE, [], 0
        if self._key in ARGUMENTS:
            if self.is_open or self._arguments is not None or (char not in '{"n'):
                self._at = _At.BROKEN  # twice, or neither an object nor one in a string nor null
                return ""
            if char == "{" and self.name is not None:
                self._open()
                self._streams = True
        elif self._key == NAME and (char != '"' or self.name is not None):
            self._at = _At.BROKEN
            return ""
        return self._in_value(char)

    def _in_value(self, char: str) -> str:
        if self._in_string:
            self._in_string = not self._ends_string(char)
            is_last = not self._in_string and self._depth == 0
        elif char == '"':
            self._in_string, is_last = True, False
        elif self._depth == 0 and char in ",}" + _SPACE:
            return self._end_bare_value(char)
        elif not (char.isalnum() or char in _PUNCTUATION):
            if self._streams:
                self.held.append(char)
            self._streams, self._at = False, _At.BROKEN
            return ""
        else:
            self._depth += (char in "{[") - (char in "}]")
            is_last = self._depth == 0 and char in "}]"
        if self._streams:
            if is_last:
                self._streams, self._at = False, _At.AFTER_VALUE
            return char
        self._value.append(char)
        return self._end_value() if is_last else ""

    def _end_bare_value(self, char: str) -> str:
        """A number, true, false or null ends with the character behind it."""
        out = self._end_value()
        return out if self._at is _At.BROKEN or char in _SPACE else out + self._between(char)

    def _end_value(self) -> str:
        self._at = _At.AFTER_VALUE
        text = "".join(self._value)
        if self._key == NAME:
            name = _decoded(text)
            if not isinstance(name, str) or not _NAME.fullmatch(name) or (self._known_names is not None and name not in self._known_names):
                self._at = _At.BROKEN
                return ""
            self.name = name
        elif self._key in ARGUMENTS:
            self._arguments = _arguments(text)
            if self._arguments is None:
                self._at = _At.BROKEN
                return ""
        if self.is_open or self.name is None or self._arguments is None:
            return ""
        self._open()
        return self._arguments


def _arguments(text: str) -> str | None:
    """An object as it is; of one in a string, the string; null is none at all."""
    if text.startswith("{"):
        return text
    value = _decoded(text)
    if isinstance(value, str):
        return value if value.strip() else "{}"
    return "{}" if text == "null" else None


def _decoded(text: str) -> object:
    """None also for a string with half of a surrogate pair, which no answer can carry."""
    try:
        value: object = json.loads(text, strict=False)
        if isinstance(value, str):
            value.encode()
    except ValueError:
        return None
    return value
