"""The driver's side of `driven`: rounds as JSON lines from stdin, answers on the stdout of the start. Standard library only.

Runs in a peer's own interpreter, where nothing of this project is installed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    folder: Path
    """The model, as a Hugging Face folder."""
    threads: int
    device: str
    """cpu or cuda."""
    work: Path | None
    """Where a converted model may be kept."""
    dtype: str = "auto"
    """As the checkpoint has it, or a torch name such as float32."""


@dataclass(frozen=True)
class Answer:
    seconds: float
    tokens: list[list[int]]
    ttft_s: list[float] = field(default_factory=list)
    """By request; empty when the library shows no single tokens."""


Generate = Callable[[list[list[int]], int], Answer]


def serve(load: Callable[[Settings], Generate]) -> None:
    """Loads once, then answers until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--dtype", default="auto")
    settings = Settings(**vars(parser.parse_args()))
    # Libraries print to stdout; the answers keep a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = load(settings)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(asdict(generate(asked["prompts"], asked["output_tokens"]))), file=answers, flush=True)
