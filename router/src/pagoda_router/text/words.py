"""Words that were tokenized before: a text of known words costs look-ups, where BPE costs a third of a microsecond a letter.

A word here is what lies between two places where a text may be cut (chunks.py): a space, and all up to the next ASCII letter or digit that
has a space after it. Its tokens are the same wherever it stands, so a text's are those of its words, one after another. Texts repeat words
long before they repeat passages. Used by encoding.py on the event loop; knows no tokenizer.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Sequence

LONGEST_CHARS = 40
"""Of a word that is remembered: longer ones are addresses, numbers, encoded data, and seldom met again."""
LONGEST_MEAN_CHARS = 12
"""Of the words of a text that is taken apart: prose has 8 to 10; code, tables and other scripts more, and few of theirs come again."""
MOST_WORDS = 16_384
"""Of one sender, in each of two generations of some 3 MB: more than a megabyte of documentation has."""
MOST_SENDERS = 16

_SPACE_AFTER_WORD = re.compile(r" (?<=[A-Za-z0-9] )")  # the space first: that is searched for in C


def words_of(text: str) -> list[str]:
    """Of a text that begins with one; each without the space that it begins with."""
    first, *others = _SPACE_AFTER_WORD.split(text)
    return [first[1:], *others]


def head_and_words(text: str) -> tuple[str, list[str]]:
    """What comes before a text's first word, and its words."""
    head, *words = _SPACE_AFTER_WORD.split(text)
    return head, words


def are_worth_it(words: Sequence[str], text: str) -> bool:
    return len(text) <= LONGEST_MEAN_CHARS * len(words)


class KnownWords:
    """Of one sender. Ids as bytes, 32 bits each as this machine has them, so that a text's are joined in one go."""

    def __init__(self, most: int = MOST_WORDS) -> None:
        self._most = most
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        """What was young before: forgotten when the young ones are as many, unless it is met until then."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def find(self, words: Sequence[str]) -> list[bytes | None]:
        found = list(map(self._young.get, words))
        if None in found and self._old:
            for at, ids in enumerate(found):
                if ids is None and (ids := self._old.get(words[at])) is not None:
                    found[at] = ids
                    self._keep(words[at], ids)
        return found

    def learn(self, words: Sequence[str], encoded: Sequence[Sequence[int]]) -> dict[str, bytes]:
        """These words with their ids, as `find` gives them."""
        learned = {word: array("I", ids).tobytes() for word, ids in zip(words, encoded, strict=True)}
        for word, ids in learned.items():
            if len(word) <= LONGEST_CHARS:
                self._keep(word, ids)
        return learned

    def _keep(self, word: str, ids: bytes) -> None:
        if len(self._young) >= self._most:
            self._old, self._young = self._young, {}
        self._young[word] = ids


class Vocabularies:
    """Known words by sender: how long an answer takes must not tell one what another sent. The least recent leave beyond the bound."""

    def __init__(self, most: int = MOST_SENDERS) -> None:
        self._most = most
        self._by_sender: OrderedDict[str, KnownWords] = OrderedDict()

    def of(self, sender: str) -> KnownWords:
        known = self._by_sender.get(sender)
        if known is None:
            known = self._by_sender[sender] = KnownWords()
            if len(self._by_sender) > self._most:
                self._by_sender.popitem(last=False)
        else:
            self._by_sender.move_to_end(sender)
        return known
