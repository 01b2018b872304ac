"""The worker's engine in a process of its own, asked in JSON lines for distributions and answers. Imports nothing of the worker.

The other side, and what each question means: `pagoda_worker.offline.scoring`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pagoda_bench.errors import BenchError
from pagoda_bench.peers.process import PeerProcess
from pagoda_bench.quality.drift import Distributions

PATHS = ("prefill", "decode")
"""As a prompt in chunks behind a cached context, and token by token: formats may compute them differently."""


class EngineRefused(BenchError):
    """The engine cannot open a model or answer a question; the message is its own."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of an opened model; see `pagoda_worker.offline.weighing` for what the bytes are of."""

    architecture: str
    dtype: str
    device: str
    kernels: str
    vocab_size: int
    max_model_len: int
    linear_bytes: int
    model_bytes: int
    kv_bytes_per_token: float


class ScoringEngine:
    """One engine after the other in one process."""

    def __init__(self, *, log: Path, device: str | None = None, threads: int | None = None) -> None:
        self._process = PeerProcess([sys.executable, "-m", "pagoda_worker.offline.scoring"], log=log, env={}, pipes=True)
        self._where = {"device": device, "threads": threads}

    def open(self, folder: Path, engine: Mapping[str, Any], *, given_text: bool) -> Facts:
        """`given_text`: for distributions; not as fast as it serves. Raises EngineRefused."""
        return Facts(**self._ask({"open": {"model_dir": str(folder), "engine": engine, "given_text": given_text, **self._where}}))

    def distributions(self, documents: Sequence[Sequence[int]], path: str, file: Path) -> Distributions:
        """[places, vocabulary], in `file`. Raises EngineRefused."""
        self._ask({"distributions": {"documents": documents, "path": path, "file": str(file)}})
        found: Distributions = np.load(file, mmap_mode="r")
        return found

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int, *, ignore_eos: bool = False) -> dict[str, Any]:
        """`token_ids`, `tokens_per_s`, … of greedy answers. Raises EngineRefused."""
        return self._ask({"answers": {"prompts": prompts, "max_tokens": max_tokens, "ignore_eos": ignore_eos}})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise EngineRefused(f"the engine {self._process.end()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise EngineRefused(f"the engine: {found['error']}")
        return found

    def close(self) -> None:
        self._process.stop()

    def __enter__(self) -> "ScoringEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
