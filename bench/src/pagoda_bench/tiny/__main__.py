"""Owns the command line: `python -m pagoda_bench.tiny train` and `… evaluate`."""

import argparse
import logging
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from pagoda_bench.tiny import corpus
from pagoda_bench.tiny import tokenizer as tok
from pagoda_bench.tiny.evaluation import agreement, exact_match, lookup_match
from pagoda_bench.tiny.models import FOLDERS, REPOSITORY, SHAPES, load_model, save_model
from pagoda_bench.tiny.report import Report, hardware
from pagoda_bench.tiny.training import Plan, train

TOKENIZER_CONVERSATIONS = 30_000


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    if options.command == "train":
        _train(options)
        return 0
    return _evaluate(options, arguments)


def _train(options: argparse.Namespace) -> None:
    log = logging.getLogger("tiny").info
    tokenizer = _tokenizer(options.work)
    folder = options.output or FOLDERS[options.model]
    mix = dict(corpus.DEFAULT_MIX) | {name: float(share) for name, share in (pair.split("=") for pair in options.mix)}
    plan = Plan(model=options.model, steps=options.steps, learning_rate=options.learning_rate, passes=options.passes, mix=mix)

    def at_checkpoint(step: int, model: LlamaForCausalLM) -> None:
        save_model(model, tokenizer, folder)
        if step % options.evaluate_every == 0:
            began = time.monotonic()
            scores = exact_match(model, tokenizer, options.items)
            log(f"{plan.model} {step} exact match {' '.join(f'{k} {v:.0f}' for k, v in scores.items())} ({time.monotonic() - began:.0f} s)")

    checkpoint = options.work / f"{options.model}.pt"
    if options.retrain:
        checkpoint.unlink(missing_ok=True)
    train(plan, tokenizer, checkpoint, log, at_checkpoint)


def _evaluate(options: argparse.Namespace, arguments: list[str]) -> int:
    """Prints and writes the scores; fails when a bar is missed."""
    began = time.monotonic()
    tokenizer = tok.load_tokenizer(options.model)
    target = {name: load_model(options.model, dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    draft = load_model(options.draft, torch.bfloat16)
    report = Report(
        command=" ".join(["python -m pagoda_bench.tiny", *arguments]),
        items_per_task=options.items,
        known_per_task=options.known,
        target={name: exact_match(model, tokenizer, options.items) for name, model in target.items()},
        lookup=lookup_match(options.items, options.known),
        draft=exact_match(draft, tokenizer, options.items),
        agreement=agreement(target["bf16"], draft, tokenizer, options.items),
        weight_bytes={
            name: (folder / "model.safetensors").stat().st_size for name, folder in vars(options).items() if name in ("model", "draft")
        },
        seconds=round(time.monotonic() - began, 1),
        hardware=hardware(options.threads, torch.__version__),
    )
    report.write(options.results)
    print(report.markdown())
    return 0 if report.met else 1


def _tokenizer(work: Path) -> Tokenizer:
    """The tokenizer in the work folder, trained when it is not there."""
    if not (work / "tokenizer.json").exists():
        conversations = islice(corpus.training_conversations(corpus.DEFAULT_MIX, Random("tokenizer")), TOKENIZER_CONVERSATIONS)
        work.mkdir(parents=True, exist_ok=True)
        tok.train_tokenizer(map(tok.render, conversations)).save(str(work / "tokenizer.json"))
    return tok.load_tokenizer(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pagoda_bench.tiny", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    commands = parser.add_subparsers(dest="command", required=True)

    training = commands.add_parser("train", help="train one model, or continue where it stopped, and write its folder")
    training.add_argument("--model", choices=sorted(SHAPES), default="target")
    training.add_argument("--steps", type=int, default=6000)
    training.add_argument("--learning-rate", type=float, default=Plan.learning_rate)
    training.add_argument("--passes", type=int, default=Plan.passes, help="forward passes of 2048 tokens per step, one thread each")
    training.add_argument("--mix", nargs="*", default=[], metavar="TASK=SHARE", help="shares that differ from the default mix")
    training.add_argument("--work", type=Path, default=REPOSITORY / ".train-tiny", help="tokenizer and checkpoints")
    training.add_argument("--retrain", action="store_true", help="begin anew, with the tokenizer that is there")
    training.add_argument("--output", type=Path, help="model folder to write (default: the one shipped with the worker)")
    training.add_argument("--evaluate-every", type=int, default=500, help="steps; a multiple of 250")
    training.add_argument("--items", type=int, default=64, help="held-out items per task in those evaluations")

    evaluation = commands.add_parser("evaluate", help="score the target and the draft on held-out items; exit 1 when a bar is missed")
    evaluation.add_argument("--model", type=Path, default=FOLDERS["target"], help="folder of the target")
    evaluation.add_argument("--draft", type=Path, default=FOLDERS["draft"], help="folder of the draft")
    evaluation.add_argument("--items", type=int, default=1000, help="held-out items per task")
    evaluation.add_argument("--known", type=int, default=20_000, help="training items per task that the look-up baseline knows")
    evaluation.add_argument("--results", type=Path, default=REPOSITORY / "bench" / "results", help="folder of tiny-evaluation.{json,md}")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
