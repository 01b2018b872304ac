"""Guesses from the longest stretch of text that ended as this one does: in its own prompt and output, or in answers that ended lately.

A suffix automaton (Blumer et al., 1985) of each text, grown token by token, knows every substring and the last place where it ended: the
state of the newest token's longest earlier match is one link away. Earlier answers are one more automaton, over the last of them; when it
is full a new one begins, and the full one serves until that one is half full (SuffixDecoding, Oliaro et al., 2024, keeps trees of bounded
depth instead). Texts of requests that must not share a prefix are not shared here either. Owned by the proposer; called by Speculation.
"""

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification
from pagoda_worker.speculation.ngram import LEAST, continuation

MOST_REMEMBERED = 1 << 16
"""Tokens of earlier answers in one automaton; about 30 MB when every one is new."""
END = -1
"""Between two answers; no token."""


class SuffixAutomaton:
    """Of `tokens`, which only grow. State 0 is the empty text."""

    __slots__ = ("_earlier", "_length", "_link", "_newest", "_next", "ended", "tokens")

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self.ended = [0]
        """By state: the position after the latest place where its substrings ended, as far as that was noted."""
        self._newest = 0
        self._earlier: tuple[int, int] | None = None
        """Of the text as it is; None: nobody asked yet."""

    def extend(self, tokens: list[int]) -> None:
        if tokens:
            self._earlier = None
        for token in tokens:
            self._add(token)

    def _add(self, token: int) -> None:
        following, link, length, ended = self._next, self._link, self._length, self.ended
        self.tokens.append(token)
        end, state = len(self.tokens), len(following)
        following.append({})
        length.append(end)
        link.append(0)
        ended.append(end)
        at = self._newest
        while at >= 0 and token not in following[at]:
            following[at][token] = state
            at = link[at]
        if at >= 0:
            after = following[at][token]
            if length[after] == length[at] + 1:
                link[state] = after
            else:
                link[state] = link[after] = self._split(at, token, after)
        self._newest = state

    def _split(self, at: int, token: int, after: int) -> int:
        """A state of its own for the shorter substrings of `after`, which now end in one place more than the longer ones."""
        copy = len(self._next)
        self._next.append(dict(self._next[after]))
        self._length.append(self._length[at] + 1)
        self._link.append(self._link[after])
        self.ended.append(self.ended[after])
        while at >= 0 and self._next[at].get(token) == after:
            self._next[at][token] = copy
            at = self._link[at]
        return copy

    def earlier(self) -> tuple[int, int]:
        """(length of the longest suffix that stands somewhere before too, position after it there); length 0: none does. A sequence
        that was asked and then got no place in the step is asked again with the same text: the end itself is not noted twice."""
        if self._earlier is None:
            state, self._earlier = self._link[self._newest], (0, 0)
            if state > 0:
                self._earlier = self._length[state], self.ended[state]
                self.ended[state] = len(self.tokens)
        return self._earlier

    def step(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """The state of the longest suffix of a foreign text that stands here, one token on; and its length."""
        while state and token not in self._next[state]:
            state = self._link[state]
            matched = self._length[state]
        after = self._next[state].get(token)
        return (0, 0) if after is None else (after, matched + 1)


class _Text:
    """One live sequence: its own automaton, and where it stands in that of earlier answers."""

    __slots__ = ("foreign", "matched", "own", "state")

    def __init__(self) -> None:
        self.own = SuffixAutomaton()
        self.foreign: SuffixAutomaton | None = None
        self.state = self.matched = 0


class SuffixProposer:
    def __init__(self, *, most_remembered: int = MOST_REMEMBERED) -> None:
        self._most = most_remembered
        self._texts: dict[Sequence, _Text] = {}
        self._answers, self._filling = SuffixAutomaton(), SuffixAutomaton()
        """The one that is read, and the one that grows; the same but while one takes over from the other."""
        self._filling = self._answers

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        tokens = sequence.tokens
        text = self._texts.get(sequence)
        if text is None:
            text = self._texts[sequence] = _Text()
        fresh = tokens[len(text.own.tokens) :]
        text.own.extend(fresh)
        length, at = text.own.earlier()
        found = continuation(tokens, at, count) if length >= LEAST else []
        if sequence.request.use_prefix_cache and not sequence.request.cache_salt:
            longer = self._among_answers(text, fresh, count)
            if longer and text.matched > length:
                return longer
        return found

    def _among_answers(self, text: _Text, fresh: list[int], count: int) -> list[int]:
        if text.foreign is not self._answers:
            text.foreign, text.state, text.matched = self._answers, 0, 0
            fresh = text.own.tokens[-self._longest_match :]
        for token in fresh:
            text.state, text.matched = self._answers.step(text.state, text.matched, token)
        if text.matched < LEAST:
            return []
        at = self._answers.ended[text.state]
        following = self._answers.tokens[at : at + count]
        return following[: following.index(END)] if END in following else following

    _longest_match = 64
    """Tokens of a text that are looked up again when the automaton of answers is a new one."""

    def planned(self, plan: StepPlan) -> None:
        """Those that ended leave their answers behind."""
        for sequence in [each for each in self._texts if each.ended]:
            del self._texts[sequence]
            if sequence.request.use_prefix_cache and not sequence.request.cache_salt:
                self._remember(sequence.tokens[sequence.output_start :])

    def _remember(self, answer: list[int]) -> None:
        if len(self._filling.tokens) > self._most:
            self._filling = SuffixAutomaton()
        elif self._filling is not self._answers and 2 * len(self._filling.tokens) > self._most:
            self._answers = self._filling
        self._filling.extend([*answer[: self._most], END])

    def judged(self, verification: Verification, accepted: int) -> None:
        pass
