"""What one sequence may say next, as a bitmask: its grammar's matcher, allowed_token_ids, bad_words and min_tokens, and the tokens so far.

Knows no other sequence, no row and no compiler. Made and moved by constraints.py.
"""

from typing import TYPE_CHECKING

import numpy as np

from pagoda_worker.request import Request
from pagoda_worker.sampling.bitmasks import Bits, clear_bits, set_bits

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Constraint:
    """Of one sequence. `matcher` None: no grammar."""

    __slots__ = ("_allowed", "_enders", "_ends_if_complete", "_ignored", "_min_tokens", "_output", "_words", "failure", "matcher")

    def __init__(self, request: Request, matcher: "LLMatcher | None", any_token: Bits, eos_token_ids: tuple[int, ...]) -> None:
        self.matcher = matcher
        self.failure = ""
        """Why no token is possible any more."""
        sampling = request.sampling
        self._allowed: Bits | None = None
        if sampling.allowed_token_ids:
            self._allowed = np.zeros_like(any_token)
            set_bits(self._allowed, np.array(sampling.allowed_token_ids))
        singles = [word[0] for word in sampling.bad_words if len(word) == 1]
        if singles:
            self._allowed = any_token.copy() if self._allowed is None else self._allowed
            clear_bits(self._allowed, np.array(singles))
        self._words = [word for word in sampling.bad_words if len(word) > 1]
        enders = [*request.stop_token_ids, *(() if request.ignore_eos else eos_token_ids)]
        self._enders = np.array(enders, np.int64)
        self._ends_if_complete = np.array(request.stop_token_ids, np.int64)
        # Without a grammar an ignored eos is a token like any other; to a grammar it is the end.
        self._ignored = np.array(eos_token_ids if request.ignore_eos and matcher is not None else (), np.int64)
        self._min_tokens = request.min_tokens
        self._output: list[int] = []

    def advance(self, token: int) -> bool:
        """Says whether the grammar takes nothing more. Afterwards `failure` is set when the token broke it."""
        self._output.append(token)
        if self.matcher is None:
            return False
        if not self.matcher.consume_token(token):
            # A stop id is not part of the text; the scheduler ends the sequence there.
            self.failure = "" if token in self._enders else _first_line(self.matcher.get_error())
            return False
        return self.matcher.is_stopped()

    def narrow_ahead(self, drafts: list[int], bits: Bits) -> list[str]:
        """bits [1 + drafts, words], all ones: each row as `narrow` leaves it once the drafts before it are sampled; its words for each row.
        Rows behind a draft that is impossible, or the last, stay: nothing sampled there will count. Nothing has moved afterwards."""
        sentences: list[str] = []
        taken = 0
        for row, draft in zip(bits, [*drafts, None], strict=True):
            everything = row.copy()
            if self.matcher is not None and not self.failure:
                self.matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            sentences.append(self.narrow(row))
            if sentences[-1]:
                row[:] = everything
            if draft is None or sentences[-1] or not (row[draft // 32] >> draft % 32) & 1:
                break
            if self.matcher is not None:
                if self.matcher.validate_tokens([draft]) != 1:  # a stop id: no text, and the end
                    break
                self.matcher.consume_token(draft)
            self._output.append(draft)
            taken += 1
            if self.matcher is not None and self.matcher.is_stopped():
                break
        if taken:
            del self._output[-taken:]
            if self.matcher is not None:
                self.matcher.rollback(taken)
        return sentences + [""] * (len(bits) - len(sentences))

    def narrow(self, bits: Bits) -> str:
        """`bits`: what the grammar allows, in place. Returns why nothing is left, or nothing."""
        if self.matcher is not None:
            if self.failure or self.matcher.is_error():
                return self.failure or _first_line(self.matcher.get_error())
            if len(self._ends_if_complete) and self.matcher.is_accepting():
                set_bits(bits, self._ends_if_complete)
        if self._allowed is not None:
            bits &= self._allowed
        for *before, last in self._words:
            if len(before) <= len(self._output) and self._output[-len(before) :] == before:
                clear_bits(bits, np.array([last]))
        if not bits.any():
            return "structured, allowed_token_ids and bad_words together leave no token to go on with: loosen one of them"
        # An end is held back only while something else is possible: a complete text cannot be made longer by waiting.
        early = np.concatenate([self._enders, self._ignored]) if len(self._output) < self._min_tokens else self._ignored
        if len(early):
            kept = bits.copy()
            clear_bits(kept, early)
            if kept.any():
                bits[:] = kept
            elif self.matcher is None:
                return "allowed_token_ids and bad_words leave only tokens that min_tokens excludes: loosen one of them"
        return ""


def _first_line(text: str) -> str:
    return f"the grammar cannot go on: {text.strip().splitlines()[0] if text.strip() else 'no token fits'}"
