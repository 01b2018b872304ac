"""What was worked out lately of long texts and long lists of ids, found again for those that begin alike, as a conversation's turns do.

Pure; bounded in bytes, the least recently used goes first.

text/chunks.py keeps ids of texts in one, placement/chains.py block hashes of ids in another. Knows neither.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

LEAD = 4096
"""Characters, or bytes, that two must have in common to be looked at; nothing shorter is remembered."""
MOST_ALIKE = 8
"""Remembered of those with one lead: more conversations behind one long system prompt find only that of the latest."""
SAME_SHARE = 1 / 16
"""What differs in less than this share, at its end, from one that is there takes its place: a conversation is remembered once."""

Content = TypeVar("Content", str, bytes)
Worked = TypeVar("Worked")


class Known(NamedTuple, Generic[Content, Worked]):
    content: Content
    worked: Worked
    size_bytes: int


class Beginning(NamedTuple, Generic[Content, Worked]):
    """What was found: of `length` characters or bytes the two are the same."""

    known: Known[Content, Worked]
    length: int


class KnownBeginnings(Generic[Content, Worked]):
    """`whose` keeps apart what must not meet: how long an answer takes must not tell one sender what another sent."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._alike: OrderedDict[tuple[Hashable, Content], list[Known[Content, Worked]]] = OrderedDict()
        """By lead; of one lead the latest last."""
        self.held_bytes = 0

    def longest(self, whose: Hashable, content: Content) -> Beginning[Content, Worked] | None:
        """The one that has most in common with this content's beginning."""
        if len(content) < LEAD or (alike := self._alike.get(key := (whose, content[:LEAD]))) is None:
            return None
        self._alike.move_to_end(key)
        best: Beginning[Content, Worked] | None = None
        for known in reversed(alike):
            length = common_length(known.content, content)
            if best is None or length > best.length:
                best = Beginning(known, length)
            if length >= len(known.content):
                break
        return best

    def remember(self, whose: Hashable, content: Content, worked: Worked, size_bytes: int, near: Beginning[Content, Worked] | None) -> None:
        """`size_bytes`: of all that is kept, the LEAD a second time. `near`: what was found for this content, if anything was."""
        if len(content) < LEAD or size_bytes > self._most_bytes:
            return
        alike = self._alike.setdefault((whose, content[:LEAD]), [])
        if near is not None and near.length >= (1 - SAME_SHARE) * len(near.known.content):
            self._drop(alike, near.known)
        elif len(alike) == MOST_ALIKE:
            self._drop(alike, alike[0])
        alike.append(Known(content, worked, size_bytes))
        self._alike.move_to_end((whose, content[:LEAD]))
        self.held_bytes += size_bytes
        while self.held_bytes > self._most_bytes:
            oldest = next(iter(self._alike))
            self._drop(self._alike[oldest], self._alike[oldest][0])
            if not self._alike[oldest]:
                del self._alike[oldest]

    def _drop(self, alike: "list[Known[Content, Worked]]", known: Known[Content, Worked]) -> None:
        """If it is still there: another request may have taken its place meanwhile."""
        for at, each in enumerate(alike):
            if each is known:
                del alike[at]
                self.held_bytes -= known.size_bytes
                return


def common_length(one: Content, other: Content) -> int:
    """Of what both begin with. By halves, each compared by memcmp once: a hundred thousand characters take microseconds."""
    same, longest = 0, min(len(one), len(other))
    step = LEAD
    while same < longest and other.startswith(one[same : same + step], same):
        same = min(longest, same + step)
        step *= 2
    most = min(longest, same + step)
    while same < most:  # what lies before `same` is equal, and somewhere before `most` something is not
        middle = (same + most + 1) // 2
        if other.startswith(one[same:middle], same):
            same = middle
        else:
            most = middle - 1
    return same
