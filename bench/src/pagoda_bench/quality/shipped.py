"""Every format of the shipped model with what was promised of it, and the checkpoints that `pagoda quantize` makes of it.

Called by `make quality` and by the fast test of the same limits. The promises are those of docs/quantization.md.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from pagoda_bench.errors import BenchError
from pagoda_bench.quality.candidates import Candidate
from pagoda_bench.quality.figures import Limits
from pagoda_bench.tiny.corpus import DEFAULT_MIX, training_conversations
from pagoda_bench.tiny.tokenizer import render

MODEL = "builtin://tiny"
EIGHT_BITS, FOUR_BITS = 1.005, 1.05
"""Perplexity, of bf16's."""
INT8_BYTES, INT4_BYTES, KV_BYTES = 0.55, 0.35, 0.55
"""Memory, of bf16's."""
EIGHT_BITS_LOST, FOUR_BITS_LOST = 1.0, 2.0
"""Points of exact match. Stricter than perplexity, which a model that answers all but surely hardly changes (docs/quality.md)."""
CALIBRATION_CONVERSATIONS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    label: str
    engine: dict[str, Any] = field(default_factory=dict)
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    quantize: tuple[str, ...] = ()
    """Options of `pagoda quantize`; empty: the engine makes the format of the bf16 checkpoint as it loads."""

    def candidate(self, source: str = MODEL) -> Candidate:
        return Candidate(source, self.engine, self.label)


def _kv(dtype: str) -> dict[str, Any]:
    return {"kvCache": {"dtype": dtype}}


_INT8 = Limits(perplexity_ratio=EIGHT_BITS, exact_match_lost=EIGHT_BITS_LOST, linear_ratio=INT8_BYTES)
_INT4 = Limits(perplexity_ratio=FOUR_BITS, exact_match_lost=FOUR_BITS_LOST, linear_ratio=INT4_BYTES)
_KV = Limits(perplexity_ratio=EIGHT_BITS, exact_match_lost=EIGHT_BITS_LOST, kv_ratio=KV_BYTES)
FORMATS: Sequence[Format] = (
    Format(label="bf16"),
    Format(label="fp32", engine={"dtype": "fp32"}),
    Format(label="int8", engine={"quantization": "int8"}, limits=_INT8),
    Format(label="fp8", engine={"quantization": "fp8"}),
    Format(label="int4", engine={"quantization": "int4"}, limits=_INT4),
    Format(label="int4 rtn", quantize=("--to", "int4", "--method", "rtn"), limits=_INT4),
    Format(label="int4 awq", quantize=("--to", "int4", "--method", "awq"), limits=_INT4),
    Format(label="int4 gptq", quantize=("--to", "int4", "--method", "gptq"), limits=_INT4),
    Format(label="int4 gptq, groups of 32", quantize=("--to", "int4", "--method", "gptq", "--asym", "--group-size", "32"), limits=_INT4),
    Format(label="int4 gptq, 2:4", quantize=("--to", "int4", "--method", "gptq", "--sparsity", "2:4")),
    Format(label="KV int8", engine=_kv("int8"), limits=_KV),
    Format(label="KV fp8", engine=_kv("fp8"), limits=_KV),
    Format(label="int8, KV int8", engine={"quantization": "int8", **_kv("int8")}, limits=replace(_INT8, kv_ratio=KV_BYTES)),
    Format(label="int4, KV int8", engine={"quantization": "int4", **_kv("int8")}, limits=replace(_INT4, kv_ratio=KV_BYTES)),
)


class NotQuantized(BenchError):
    """`pagoda quantize` failed; the message ends with its own last line."""


def candidates(formats: Sequence[Format], scratch: Path, model: Path) -> Iterator[Candidate]:
    """Quantized folders are made in `scratch` as they are asked for. model: the shipped folder. Raises NotQuantized."""
    calibration = scratch / "calibration.jsonl"
    for one in formats:
        if not one.quantize:
            yield one.candidate()
            continue
        if not calibration.exists():
            write_calibration(calibration)
        folder = scratch / one.label.replace(" ", "-")
        quantize(model, folder, one.quantize, calibration)
        yield one.candidate(str(folder))


def write_calibration(path: Path) -> None:
    """Conversations from the training side of the split: what is judged later must not have been seen."""
    drawn = islice(training_conversations(DEFAULT_MIX, Random("calibration")), CALIBRATION_CONVERSATIONS)
    path.write_text("".join(f"{json.dumps({'text': render(messages)})}\n" for messages in drawn))


def quantize(model: Path, folder: Path, options: Sequence[str], calibration: Path) -> str:
    """What the command printed. Raises NotQuantized."""
    command = [str(Path(sys.executable).parent / "pagoda"), "quantize", str(model), *options]
    command += ["--calibration", str(calibration), "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise NotQuantized(f"pagoda quantize {' '.join(options)}: {last[0]}")
    return done.stdout
