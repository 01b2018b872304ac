"""`python -m pagoda_bench.checkpoints` (`make bench-checkpoints`): the folders of `pagoda quantize` in our engine, in vLLM and in
transformers; result file `checkpoints`, and the tables of docs/checkpoints.md.
"""

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from pagoda_bench.checkpoints.document import DOCUMENT, with_tables
from pagoda_bench.checkpoints.elsewhere import programs
from pagoda_bench.checkpoints.formats import FORMATS, chosen
from pagoda_bench.checkpoints.measure import Comparison, Texts, tiny_texts
from pagoda_bench.errors import BenchError
from pagoda_bench.hardware import read_hardware
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.load.engine import builtin_tiny
from pagoda_bench.quality.engine import ScoringEngine
from pagoda_bench.results import FOLDER, Row, result_here, write


def main(arguments: list[str]) -> int:
    raise_on_sigterm()
    options = _parser().parse_args(arguments)
    formats, threads = chosen(options.formats), read_hardware(()).cores
    texts = tiny_texts(
        Tokenizer.from_file(str(builtin_tiny() / "tokenizer.json")),
        tokens=options.tokens,
        per_task=options.per_task,
        documents_elsewhere=options.documents_elsewhere,
        prompts_elsewhere=options.per_task_elsewhere,
    )

    def say(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="pagoda-checkpoints-") as folder, ScoringEngine(log=Path(folder) / "engine.log") as engine:
        comparison = Comparison(engine, programs(threads), texts, threads=threads, scratch=Path(folder), say=say)
        rows: list[Row] = list(comparison.rows(formats))
    command = f"python -m pagoda_bench.checkpoints {shlex.join(arguments)}" if arguments else "make bench-checkpoints"
    result = result_here("checkpoints", rows, command=command, packages=("torch",), notes=_notes(texts, comparison))
    path = options.output or FOLDER / "checkpoints.json"
    write(result, path)
    if options.output is None:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(), result))
    print(f"wrote {os.path.relpath(path)}")
    return 0


def _notes(texts: Texts, comparison: Comparison) -> list[str]:
    kinds, corpus = ", ".join(each.name for each in texts.questions), texts.corpus
    return [
        (
            f"text: {corpus.source}; perplexity is of the judged {int(corpus.judged().sum()):,} places, KL and the top token of all "
            f"{len(corpus.targets()):,}, as a prompt"
        ),
        f"exact match: the mean over {kinds}, {len(texts.questions[0].prompts)} questions each, greedy",
        (
            f"elsewhere, against our engine with the same folder: greedy answers to {len(texts.prompts)} of those questions "
            f"({comparison.tokens_elsewhere} tokens of the plain model) that are the same to the end; of the tokens those before the first "
            "that differs, as a share of ours; mean KL over the vocabulary at the first "
            f"{len(texts.part.targets()):,} places"
        ),
        *(f"of {'; '.join(labels)}: {message}" for message, labels in comparison.told.items()),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.checkpoints", description="Who reads the folders of `pagoda quantize`.")
    labels = "; ".join(one.label for one in FORMATS)
    parser.add_argument("--formats", type=lambda text: [part.strip() for part in text.split(";")], default=[], help=f"of {labels}")
    parser.add_argument("--tokens", type=int, default=4_000, help="of held-out text, in our engine")
    parser.add_argument("--per-task", type=int, default=20, help="held-out questions of each task, in our engine")
    parser.add_argument("--documents-elsewhere", type=int, default=5, help="of that text, in the others")
    parser.add_argument("--per-task-elsewhere", type=int, default=4, help="of those questions, in the others")
    parser.add_argument("--output", type=Path, help="in place of bench/results/checkpoints.json; the document then stays as it is")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BenchError as error:
        sys.exit(f"bench-checkpoints: {error}")
