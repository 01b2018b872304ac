"""`pagoda bench quality`: how far formats drift from the first one, what they save, how fast they are. Result file, tables, picture."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from pagoda_bench import results
from pagoda_bench.errors import SettingsError
from pagoda_bench.load.engine import builtin_tiny, model_folder, model_name
from pagoda_bench.quality import table
from pagoda_bench.quality.candidates import Candidate
from pagoda_bench.quality.corpus import Corpus, own_corpus, read_corpus, speaks_tiny
from pagoda_bench.quality.engine import PATHS, ScoringEngine
from pagoda_bench.quality.figures import Limits, in_words, missed, rows, speed_rows
from pagoda_bench.quality.measure import NOT_MEASURED, Say, SpeedPlan, Texts, bounded_tokens, quality, speed
from pagoda_bench.quality.questions import QuestionSet, read_questions, tiny_questions
from pagoda_bench.results import Result, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    corpus: Path | None = None
    """None: the tiny model's own, where the model speaks its vocabulary."""
    tokens: int = 20_000
    window: int = 512
    questions: Path | None = None
    """None: the tiny model's tasks, where the model speaks its vocabulary."""
    per_task: int = 100
    paths: Sequence[str] = PATHS
    speed: SpeedPlan | None = None
    """None: it is not measured."""
    speed_source: str | None = None
    """Of whose size the speed is; None: of the candidates themselves."""
    device: str | None = None
    threads: int | None = None
    limits: Mapping[str, Limits] | None = None


def measure(candidates: Sequence[Candidate], options: Options, say: Say) -> tuple[list[Row], list[str]]:
    """Rows, and notes for whoever reads them. Raises BenchError."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagoda-quality-")))
        folders = {source: stack.enter_context(model_folder(source)) for source in dict.fromkeys(each.source for each in candidates)}
        texts = _texts(folders[candidates[0].source], options)
        log = scratch / "engine.log"
        engine = stack.enter_context(ScoringEngine(log=log, device=options.device, threads=options.threads))
        measured = quality(engine, candidates, folders, texts, scratch, say)
        name = model_name(candidates[0].source)
        found = rows(measured, options.limits or {}, name=name)
        if options.speed is not None:
            found += _speeds(engine, candidates, folders, options, options.speed, stack, say)
    return found, list(_notes(texts, options, name, measured[0].facts.device))


def _texts(folder: Path, options: Options) -> Texts:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SettingsError(f"{path} does not exist: without a tokenizer there is no text to judge")
    tokenizer = Tokenizer.from_file(str(path))
    tiny = speaks_tiny(tokenizer, Tokenizer.from_file(str(builtin_tiny() / "tokenizer.json")))
    tokens = bounded_tokens(options.tokens, tokenizer.get_vocab_size())
    return Texts(tokenizer, _corpus(tokenizer, options, tokens, tiny=tiny), _questions(tokenizer, options, tiny=tiny), options.paths)


def _corpus(tokenizer: Tokenizer, options: Options, tokens: int, *, tiny: bool) -> Corpus:
    if options.corpus is not None:
        return read_corpus(options.corpus, tokenizer, tokens=tokens, window=options.window)
    if not tiny:
        raise SettingsError("say --corpus FILE, text of the kind that this model is for: only the shipped models have one of their own")
    return own_corpus(tokenizer, tokens=tokens)


def _questions(tokenizer: Tokenizer, options: Options, *, tiny: bool) -> list[QuestionSet]:
    if options.questions is not None:
        return read_questions(options.questions, tokenizer, options.per_task)
    return tiny_questions(tokenizer, options.per_task) if tiny else []


def _speeds(
    engine: ScoringEngine,
    candidates: Sequence[Candidate],
    folders: Mapping[str, Path],
    options: Options,
    plan: SpeedPlan,
    stack: ExitStack,
    say: Say,
) -> Iterator[Row]:
    """With a model of another size only what engine settings make of it can be timed: a checkpoint in another format cannot."""
    source = options.speed_source
    if source is None:
        jobs = {each.label: (folders[each.source], each.engine) for each in candidates}
    else:
        folder = stack.enter_context(model_folder(source))
        jobs = {each.label: (folder, each.engine) for each in candidates if each.source == candidates[0].source}
    return speed_rows(speed(engine, jobs, plan, say), name=model_name(source or candidates[0].source))


def _notes(texts: Texts, options: Options, name: str, device: str) -> Iterator[str]:
    judged, places = int(texts.corpus.judged().sum()), len(texts.corpus.targets())
    kinds = ", ".join(each.name for each in texts.questions)
    yield f"on {device}, every figure by the engine's own path; text: {texts.corpus.source}; {judged:,} of {places:,} places are judged"
    yield (
        f"perplexity is of the judged places, KL and the top token of all places, the worse of the paths {' and '.join(texts.paths)}; "
        "intervals: 95 % bootstrap over documents"
    )
    if kinds:
        yield f"exact match: the mean over {kinds}, {len(texts.questions[0].prompts)} questions each, greedy"
    yield "linear layers are the projections of attention and feed-forward; the whole model also has embedding, output head and norms"
    if options.speed is not None:
        plan = options.speed
        yield (
            f"speed is of {model_name(options.speed_source) if options.speed_source else name}: {plan.prompt_tokens} tokens in, "
            f"{plan.output_tokens} out, all streams at once, without HTTP; medians of {plan.rounds} round(s) in turning order, in brackets "
            "the median ratio to the first format in the same round"
        )


def run(candidates: Sequence[Candidate], options: Options, *, output: Path, command: str, plots: bool = True) -> list[str]:
    """Writes output.{json,md,csv,png} and prints; returns what failed: limits that were missed, candidates that could not be measured.
    Raises BenchError."""
    console, load = Console(), os.getloadavg()[0]
    failed: list[str] = []

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
        if NOT_MEASURED in line:
            failed.append(line)

    found, notes = measure(candidates, options, say)
    notes += failed
    if options.speed is not None:
        notes.append(f"load average of the machine before: {load:.1f}")
    result = results.result_here(output.name, found, command=command, packages=("pagoda-worker", "torch"), notes=notes)
    written = write_all(result, output, plots=plots)
    for lines in (table.overview(found), table.drifts(found)):
        console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
    console.print(f"wrote {' '.join(os.path.relpath(path) for path in written)}", soft_wrap=True)
    failed += [f"missed: {in_words(row)}" for row in missed(found)]
    for line in failed:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return failed


def write_all(result: Result, output: Path, *, plots: bool) -> list[Path]:
    paths = [output.with_name(f"{output.name}{suffix}") for suffix in (".json", ".md", ".csv")]
    output.parent.mkdir(parents=True, exist_ok=True)
    results.write(result, paths[0])
    table.write_csv(result.rows, paths[2])
    pictures: list[Path] = []
    if plots:
        from pagoda_bench.quality.plots import draw

        pictures = [draw(result.rows, output.with_name(f"{output.name}.png"), table.Figures(result.rows).name)]
    paths[1].write_text(table.markdown(result, [picture.name for picture in pictures]))
    return [*paths, *pictures]
