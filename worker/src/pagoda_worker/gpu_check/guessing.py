"""What speculation wins on this device: the shipped pair of models, held-out items of its tasks, tokens per second with and without.

The tokens of each way are compared in truth.py; here only the clock counts. Called by the check.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_worker.config import Device, EngineConfig, Speculative
from pagoda_worker.engine import Engine
from pagoda_worker.gpu_check.report import Report
from pagoda_worker.settings.sources import BUILTIN_DIR

PROMPTS = Path(__file__).with_name("prompts.json")
"""Six of each of five tasks, in turn, as the tiny model's tokens: the check needs no tokenizer."""
WAYS: tuple[Speculative, ...] = ("none", "ngram", "draft")
DRAFT_TOKENS = 6
MAX_TOKENS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class GuessingScale:
    streams: Sequence[int]
    rounds: int
    prompts: int


FULL_GUESSING = GuessingScale(streams=(1, 8), rounds=3, prompts=30)
SMALL_GUESSING = GuessingScale(streams=(2,), rounds=1, prompts=2)


def time_guessing(scale: GuessingScale, device: Device, report: Report) -> None:
    """The best round of each way: the first compiles kernels and learns what pays."""
    prompts = json.loads(PROMPTS.read_text())[: scale.prompts]
    for streams in scale.streams:
        case, plain = f"speculation of the shipped pair, {streams} at a time", 0.0
        for way in WAYS:
            engine = Engine(_config(way, streams, device))
            rate = max(_rate(engine, prompts) for _ in range(scale.rounds))
            plain = plain or rate
            report.add_row(case, way, "output_tokens_per_s", rate, "tokens/s")
            report.add_row(case, way, "over_none", rate / plain, "ratio")
            report.line(f"{case:45} {way:30} {rate:9.0f} tokens/s, {rate / plain:5.2f} x none")


def _config(way: Speculative, streams: int, device: Device) -> EngineConfig:
    more: dict[str, Any] = {"draft_dir": BUILTIN_DIR / "tiny-draft"} if way == "draft" else {}
    return EngineConfig(
        model_dir=BUILTIN_DIR / "tiny",
        device=device,
        dtype="bf16",
        max_running=streams,
        speculative=way,
        draft_tokens=DRAFT_TOKENS,
        prefix_caching=False,  # the rounds repeat their prompts
        **more,
    )


def _rate(engine: Engine, prompts: Sequence[Sequence[int]]) -> float:
    began = time.perf_counter()
    done = engine.generate(prompts, max_tokens=MAX_TOKENS)
    return sum(len(completion.token_ids) for completion in done) / (time.perf_counter() - began)
