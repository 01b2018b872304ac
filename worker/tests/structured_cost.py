"""What grammars cost with llguidance and, where it is installed, with xgrammar: docs/decisions/structured-output.md has the table.

`python tests/structured_cost.py` in `worker/`: the tokenizer of the tiny model and two byte-level ones trained here on Python sources (32k
and 128k entries, a few minutes; kept in --cache). Times are of one thread of this machine; medians and worst over the tokens of valid
documents.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.request import Request, StructuredOutput
from pagoda_worker.sampling.structured import compile_grammar, read_tokenizer
from pagoda_worker.settings.sources import BUILTIN_DIR

CORPUS_BYTES = 80 << 20
CASES: dict[str, Any] = json.loads(Path(__file__).with_name("structured_cases.json").read_text("utf-8"))
"""A schema as people write them and a document that it holds true for; and hard ones, with documents that they hold true for and not."""


class Matcher(Protocol):
    """One library's, at the start of a grammar."""

    def fill(self) -> None: ...
    def allows(self, token: int) -> bool: ...
    def take(self, token: int) -> bool: ...
    def may_end(self) -> bool: ...


class Library(Protocol):
    def compile(self, schema: dict[str, Any]) -> Callable[[], Matcher]:
        """Raises ValueError when the library refuses the schema."""
        ...


class GuidanceMatcher:
    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._bits = matcher, np.zeros(-(-vocab // 32), np.int32)

    def fill(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)

    def allows(self, token: int) -> bool:
        return bool(self._bits.view(np.uint32)[token // 32] >> np.uint32(token % 32) & 1)

    def take(self, token: int) -> bool:
        return bool(self._matcher.consume_token(token))

    def may_end(self) -> bool:
        return bool(self._matcher.is_accepting())


class Guidance:
    def __init__(self, folder: Path, vocab: int, eos: int) -> None:
        self._vocab, self._tokenizer = vocab, read_tokenizer((folder / "tokenizer.json").read_text, vocab_size=vocab, eos_token_ids=[eos])

    def compile(self, schema: dict[str, Any]) -> Callable[[], Matcher]:
        try:
            matcher = compile_grammar(self._tokenizer, StructuredOutput(kind="json_schema", text=json.dumps(schema)))
        except Exception as error:
            raise ValueError(str(error)) from error
        return lambda: GuidanceMatcher(matcher.deep_copy(), self._vocab)


class XgrammarMatcher:
    def __init__(self, matcher: Any, bits: Any, eos: int) -> None:
        self._matcher, self._bits, self._eos = matcher, bits, eos

    def fill(self) -> None:
        self._matcher.fill_next_token_bitmask(self._bits, 0)

    def allows(self, token: int) -> bool:
        return bool(self._bits[0].numpy().view(np.uint32)[token // 32] >> np.uint32(token % 32) & 1)

    def take(self, token: int) -> bool:
        return bool(self._matcher.accept_token(token))

    def may_end(self) -> bool:
        self.fill()
        return self.allows(self._eos)


class Xgrammar:
    def __init__(self, folder: Path, vocab: int, eos: int) -> None:
        import xgrammar

        self._xgrammar, self._vocab, self._eos = xgrammar, vocab, eos
        known = {token: text for text, token in Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().items()}
        words = [known.get(token, "") for token in range(vocab)]
        kind = xgrammar.VocabType.BYTE_LEVEL
        self._tokens = xgrammar.TokenizerInfo(words, vocab_type=kind, vocab_size=vocab, stop_token_ids=[eos])

    def compile(self, schema: dict[str, Any]) -> Callable[[], Matcher]:
        try:
            compiler = self._xgrammar.GrammarCompiler(self._tokens, max_threads=1, cache_enabled=False)
            compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
        except Exception as error:
            raise ValueError(str(error)) from error

        def begin() -> Matcher:
            bits = self._xgrammar.allocate_token_bitmask(1, self._vocab)
            return XgrammarMatcher(self._xgrammar.GrammarMatcher(compiled), bits, self._eos)

        return begin


# ---------------------------------------------------------------- tokenizers


def corpus() -> Iterator[str]:
    """Python sources of this environment: the same on every machine with the same pins, and no download."""
    left = CORPUS_BYTES
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        text = path.read_text("utf-8", errors="ignore")
        left -= len(text)
        if left < 0:
            return
        yield text


def trained(cache: Path, entries: int) -> Path:
    folder = cache / f"byte-level-{entries}"
    if not (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=entries, special_tokens=["<|end|>"], initial_alphabet=alphabet, max_token_length=64, show_progress=False
        )
        tokenizer.train_from_iterator(corpus(), trainer)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


# ---------------------------------------------------------------- measures


@dataclass(frozen=True, slots=True)
class Cost:
    prepare_s: float
    compile_ms: float
    first_mask_ms: float
    mask_us_median: float
    mask_us_worst: float


def cost(build: Callable[[Path, int, int], Library], folder: Path, eos: int) -> Cost:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    began = time.perf_counter()
    library = build(folder, tokenizer.get_vocab_size(), eos)
    prepared = time.perf_counter()
    compiles, masks, firsts = [], [], []
    for _ in range(5):
        began_compile = time.perf_counter()
        matcher = library.compile(CASES["schema"])()
        compiles.append(time.perf_counter() - began_compile)
        for at, token in enumerate(tokenizer.encode(json.dumps(CASES["document"], ensure_ascii=False)).ids):
            began_mask = time.perf_counter()
            matcher.fill()
            (masks if at else firsts).append(time.perf_counter() - began_mask)
            assert matcher.allows(token), f"token {at} of a valid document is not allowed"
            assert matcher.take(token)
        assert matcher.may_end()
    return Cost(prepared - began, statistics.median(compiles) * 1e3, firsts[0] * 1e3, statistics.median(masks) * 1e6, max(masks) * 1e6)


def step_ms(wanted: StructuredOutput | None, *, rows: int = 32, tokens: int = 128) -> float:
    """Of decode steps of the tiny model with so many rows, all of them with the same constraint or without."""
    engine = Engine(EngineConfig(model_dir=BUILTIN_DIR / "tiny", device="cpu", max_running=rows))
    for each in range(rows):
        engine.submit(Request(request_id=str(each), prompt_ids=[5, 6, 7], max_tokens=tokens, ignore_eos=True, structured=wanted))
    steps = []
    while engine.has_work:
        output = engine.step()
        if output.sequences == output.tokens == rows:
            steps.append(output.duration_us)
    return statistics.median(steps) / 1e3


def verdicts(library: Library, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Whether each hard schema is enforced: right, refused (which is honest), or what it gets wrong."""
    for case in CASES["hard"]:
        try:
            begin = library.compile(case["schema"])
        except ValueError:
            yield case["name"], "refused"
            continue
        wrong = [f"forbids {each}" for each in case["good"] if not accepts(begin(), tokenizer, each)]
        wrong += [f"allows {each}" for each in case["bad"] if accepts(begin(), tokenizer, each)]
        yield case["name"], "; ".join(wrong) or "right"


def accepts(matcher: Matcher, tokenizer: Tokenizer, document: Any) -> bool:
    for token in tokenizer.encode(json.dumps(document, ensure_ascii=False)).ids:
        matcher.fill()
        if not matcher.allows(token) or not matcher.take(token):
            return False
    return matcher.may_end()


def main() -> int:
    parser = argparse.ArgumentParser(description="What grammars cost and which schemas they hold.")
    parser.add_argument("--cache", type=Path, default=Path("structured-cost"), help="folder for the trained tokenizers")
    parser.add_argument("--entries", type=int, nargs="*", default=[32_000, 128_000])
    arguments = parser.parse_args()
    tiny = BUILTIN_DIR / "tiny"
    tokenizers = [("tiny, 1k", tiny, 1), *((f"{n // 1000}k", trained(arguments.cache, n), 0) for n in arguments.entries)]
    for _ in range(3):
        plain, constrained = step_ms(None), step_ms(StructuredOutput(kind="regex", text="[a-z ,]{2000}"))
        print(f"a decode step of 32 rows of the tiny model: {plain:.2f} ms plain, {constrained:.2f} ms with a grammar each")
    libraries: dict[str, Callable[[Path, int, int], Library]] = {"llguidance": Guidance}
    if importlib.util.find_spec("xgrammar"):
        libraries["xgrammar"] = Xgrammar
    for name, build in libraries.items():
        print(f"\n{name} {importlib.metadata.version(name)}")
        for label, folder, eos in tokenizers:
            print(f"  {label}: {cost(build, folder, eos)}")
        library = build(tiny, 1024, 1)
        for schema, verdict in verdicts(library, Tokenizer.from_file(str(tiny / "tokenizer.json"))):
            print(f"  {schema}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
