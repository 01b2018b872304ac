"""The reader's side of `pagoda_bench.checkpoints.elsewhere`: questions as JSON lines from stdin, answers on the stdout of the start.

Runs in another project's interpreter, where nothing of ours is installed: the standard library and numpy only. Each question is

    {"distributions": {"documents": [[ids]], "file": where}}   → a .npy, float32 [places, V], natural logarithms; a place for each
                                                                 token but a document's first, documents one after the other
    {"answers": {"prompts": [[ids]], "max_tokens": N}}         → {"token_ids": [[ids]]}, greedy, the end token included
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = Sequence[Sequence[int]]


class Reads(Protocol):
    """A loaded checkpoint."""

    vocab_size: int

    def distributions(self, documents: Ids) -> Iterator[npt.NDArray[np.float32]]:
        """[len - 1, vocab_size] of each document."""
        ...

    def answers(self, prompts: Ids, max_tokens: int) -> list[list[int]]: ...


def serve(load: Callable[[Path, int], Reads]) -> None:
    """`load`: of folder and number of threads. Loads once, then answers until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    settings = parser.parse_args()
    # Libraries print to stdout; the answers keep a stream of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    model = load(settings.folder, settings.threads)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(model, json.loads(line))), file=answers, flush=True)


def _answer(model: Reads, question: dict[str, Any]) -> dict[str, Any]:
    if "answers" in question:
        return {"token_ids": model.answers(**question["answers"])}
    asked = question["distributions"]
    np.save(asked["file"], np.concatenate(list(model.distributions(asked["documents"]))))
    return {}
