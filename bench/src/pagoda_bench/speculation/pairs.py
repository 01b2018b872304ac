"""The pairs of models that are measured: the shipped one, and a larger target for the same draft, which is trained here when it is missing.

The shipped target is as small as a model can be that is right about something: its step is little more than its draft's. The larger one
is that target grown to 30 times its numbers and trained on (`tiny/growth.py`), as far from its draft as the pairs that people serve.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from pagoda_bench.hardware import read_hardware
from pagoda_bench.peers.cases import threads_for
from pagoda_bench.quality.shipped import quantize, write_calibration
from pagoda_bench.speculation.work import KV_CACHE_BYTES, Pair
from pagoda_bench.tiny import tokenizer as tok
from pagoda_bench.tiny.evaluation import exact_match
from pagoda_bench.tiny.models import FOLDERS, LARGE, LARGE_DEPTH, LARGE_WIDTH, REPOSITORY, save_model
from pagoda_bench.tiny.training import Plan, train

WORK = REPOSITORY / ".train-tiny"
STEPS = 60
"""A quarter of a million tokens. The grown model begins where the target ended; what this trains is that copies of a channel part."""


def shipped(cores: int) -> Pair:
    return Pair(
        target=FOLDERS["target"], draft=FOLDERS["draft"], note="the shipped pair", threads=threads_for("tiny", cores), result="speculation"
    )


def larger(cores: int, say: Callable[[str], None], *, retrain: bool = False) -> Pair:
    """Trained into the checkout's work folder where it is not there yet, or anew, and quantized to int8. Raises NotQuantized."""
    folder = WORK / f"{LARGE}-int8"
    if retrain:
        forget_larger(WORK)
    if not folder.exists():
        quantize(_trained(say), folder, ("--to", "int8"), _calibration())
    return Pair(
        target=folder,
        draft=FOLDERS["draft"],
        note=f"the shipped target grown to {LARGE_WIDTH} times its width and {LARGE_DEPTH} times its layers, 111 million parameters, "
        f"trained for {STEPS} more steps and served in int8, with the shipped draft",
        threads=cores,
        kv_cache_bytes=KV_CACHE_BYTES * LARGE_WIDTH * LARGE_DEPTH,
        parts=4,
        result="speculation-large",
    )


def forget_larger(work: Path) -> None:
    """All of it: the int8 folder alone would be made again of the old weights, and these of the old checkpoint."""
    for folder in (work / f"{LARGE}-int8", work / LARGE):
        shutil.rmtree(folder, ignore_errors=True)
    (work / f"{LARGE}.pt").unlink(missing_ok=True)


def _trained(say: Callable[[str], None]) -> Path:
    folder, tokenizer = WORK / LARGE, tok.load_tokenizer(FOLDERS["target"])
    amx = "amx_bf16" in read_hardware(()).flags
    plan = Plan(
        model=LARGE,
        steps=STEPS,
        learning_rate=1e-4,
        warmup_steps=10,
        decay_share=0.8,
        muon=False,
        autocast=amx,
        log_every=5,
        checkpoint_every=20,
    )
    model = train(plan, tokenizer, WORK / f"{LARGE}.pt", say, lambda step, model: None)
    scores = exact_match(model, tokenizer, 64)
    say(f"{LARGE}: exact match {' '.join(f'{task} {score:.0f}' for task, score in scores.items())}")
    save_model(model, tokenizer, folder)
    return folder


def _calibration() -> Path:
    path = WORK / "calibration.jsonl"
    write_calibration(path)
    return path
