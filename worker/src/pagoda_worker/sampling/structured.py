"""Grammars: what an output must be → a matcher that says which tokens may come next.

Owns the tokenizer as llguidance reads it, the threads that compile, and the grammars compiled lately. Knows neither rows nor steps;
called by constraints.py (docs/decisions/structured-output.md). llguidance is imported when a tokenizer is read, in that thread: without it
the engine runs, and says that there is no structured output.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from pagoda_worker.errors import ModelError, RequestRefused
from pagoda_worker.request import StructuredOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

COMPILE_S = 10.0
"""From submission on, the wait for a free thread included. What llguidance may spend is bounded by its limits as well."""
CACHED_GRAMMARS = 64
MAX_LEXER_STATES = 50_000
"""Of one grammar, 1 to 2 KB each; copies share them, so that a grammar asked for again is warm, and grows as it is used."""
THREADS = 2
MAX_SENTENCE = 400
"""Characters of the compiler's own words in a refusal."""
WHITESPACE = r"\x20|\x0D?\x0A[\x20\x09]{0,24}"
"""Between the parts of a JSON text: a space, or a new line with its indent. With more, models that like blanks fill max_tokens with them
(docs/log.md)."""
FIELDS = {"json_object": "json_object", "json_schema": "json_schema", "regex": "regex", "grammar": "grammar", "choice": "choices"}
"""In the proto's spelling."""


class GrammarCompiler:
    def __init__(self, text: Callable[[], str], *, vocab_size: int, eos_token_ids: Sequence[int], threads: int = THREADS) -> None:
        """`text`: tokenizer.json. Begins to read it at once, in a thread: a second for 128k entries."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grammar")
        self._tokenizer = self._pool.submit(read_tokenizer, text, vocab_size=vocab_size, eos_token_ids=eos_token_ids)
        self._compiled: OrderedDict[StructuredOutput, Future[LLMatcher]] = OrderedDict()

    def why_unusable(self) -> str:
        """Waits until the tokenizer is read. Empty: grammars can be compiled."""
        error = self._tokenizer.exception()
        return "" if error is None else str(error)

    def compile(self, wanted: StructuredOutput) -> "Future[LLMatcher]":
        """A matcher at its start, for everyone to copy, or RequestRefused that names the field."""
        known = self._compiled.get(wanted)
        if known is None:
            known = self._compiled[wanted] = self._pool.submit(self._compile, wanted)
            if len(self._compiled) > CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(wanted)
        return known

    def _compile(self, wanted: StructuredOutput) -> "LLMatcher":
        return compile_grammar(self._tokenizer.result(), wanted)


def read_tokenizer(text: Callable[[], str], *, vocab_size: int, eos_token_ids: Sequence[int]) -> "LLTokenizer":
    """`text`: tokenizer.json. `vocab_size` is the width of the logits: checkpoints pad it. Raises ModelError."""
    try:
        from llguidance import LLTokenizer

        return LLTokenizer(text(), n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)
    except (ImportError, ValueError) as error:
        raise ModelError(f"the model's tokenizer.json cannot be read for structured output: {error}") from error


def compile_grammar(tokenizer: "LLTokenizer", wanted: StructuredOutput) -> "LLMatcher":
    """Raises RequestRefused."""
    from llguidance import LLMatcher, LLParserLimits

    try:
        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        matcher = LLMatcher(tokenizer, _source(wanted), log_level=0, limits=limits)
    except ValueError as error:
        raise refusal(wanted, str(error)) from error
    except RecursionError as error:
        raise refusal(wanted, "it is nested too deeply") from error
    if matcher.is_error():
        raise refusal(wanted, matcher.get_error())
    return matcher


def refusal(wanted: StructuredOutput, reason: str) -> RequestRefused:
    param = f"structured.{FIELDS[wanted.kind]}"
    words = " ".join(reason.split())
    words = words if len(words) <= MAX_SENTENCE else f"{words[:MAX_SENTENCE]}…"
    return RequestRefused(f"{param} cannot be enforced: {words}", param=param)


def _source(wanted: StructuredOutput) -> str:
    """In llguidance's own form. Raises ValueError."""
    from llguidance import LLMatcher, grammar_from

    if wanted.kind == "choice":
        return grammar_from("choice", json.dumps(wanted.choices))
    if wanted.kind in ("regex", "grammar"):
        return grammar_from("regex" if wanted.kind == "regex" else "grammar", wanted.text)
    schema = {"type": "object"} if wanted.kind == "json_object" else json.loads(wanted.text)
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object")
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": WHITESPACE})
