"""Runs the stages: one worker process that builds an engine per job, transformers in another, round by round in turning order.

Imports nothing of the worker: processes and JSON lines are what they share.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pagoda_bench.offline import OfflineWorker
from pagoda_bench.peers.cases import Model
from pagoda_bench.peers.driven import Driven
from pagoda_bench.peers.rounds import turned
from pagoda_bench.tour.stages import BATCH, CONTEXT, FIRST, RUNNING, STAGES, STATIC, Stage
from pagoda_bench.tour.workload import ARRIVING, Request, job

PEER = "transformers"
Say = Callable[[str], None]


@dataclass(slots=True)
class Answers:
    """The worker's answers of one stage, by round."""

    stage: Stage
    at_once: list[dict[str, Any]] = field(default_factory=list)
    arriving: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Measured:
    stages: list[Answers]
    """Without those that this device cannot run."""
    peer_s: list[float]
    """Seconds by round in which transformers wrote the same answers, batch by batch of the static stage's size."""
    device: str
    interval_s: float
    """Between two arrivals."""


def measure(model: Model, asked: Sequence[Request], *, rounds: int, device: str | None, scratch: Path, say: Say) -> Measured:
    """The first stage is measured once: it takes as long as all others together. Raises PeerUnavailable."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    say("starting")
    with closing(OfflineWorker(log=scratch / "worker.log")) as worker, closing(_Peer(model, asked, device=device, scratch=scratch)) as peer:
        tour = _Tour(worker, model, asked, device)
        tour.run(rounds, peer, say)
        return Measured(list(tour.answers.values()), peer.seconds, tour.device_name, tour.interval_s)


class _Tour:
    def __init__(self, worker: OfflineWorker, model: Model, asked: Sequence[Request], device: str) -> None:
        """Warms up with an uncounted static run, which also says how much memory a token takes and what a fast pace of arrivals is."""
        self._worker, self._asked = worker, asked
        self._base: dict[str, Any] = {"model_dir": str(model.folder), "device": device, "dtype": "fp32", "threads": model.threads}
        self._base |= {"max_model_len": CONTEXT, "max_batch_tokens": CONTEXT + RUNNING, "warmup": True}
        warm = worker.answer({**self._base, **STATIC.engine, "requests": job(asked)})
        self._base["kv_cache_bytes"] = int(warm["kv_bytes_per_token"] * BATCH * CONTEXT)
        self.device_name: str = warm["device"]
        self.interval_s: float = 2 * warm["seconds"] / len(asked)
        self.answers = {stage.slug: Answers(stage) for stage in STAGES if not stage.cuda_only or device == "cuda"}

    def run(self, rounds: int, peer: "_Peer", say: Say) -> None:
        for number in range(rounds):
            stages = {slug: one.stage for slug, one in self.answers.items() if one.stage is not FIRST or number == 0}
            for name in turned([*stages, PEER], number):
                if name == PEER:
                    peer.round(say)
                else:
                    self._round(stages[name], number, say)

    def _round(self, stage: Stage, number: int, say: Say) -> None:
        settings = {**self._base, **stage.engine}
        answers = self.answers[stage.slug]
        answers.at_once.append(self._worker.answer({**settings, "requests": job(self._asked)}))
        say(f"round {number + 1}: {stage.title:22} {answers.at_once[-1]['tokens_per_s']:8.1f} tok/s")
        if stage.arrivals:
            some = job(self._asked[:ARRIVING], interval_s=self.interval_s)
            answers.arriving.append(self._worker.answer({**settings, "requests": some}))


class _Peer:
    """transformers' `generate`, batch by batch; each batch runs to its longest answer, and only what was asked for counts."""

    def __init__(self, model: Model, asked: Sequence[Request], *, device: str, scratch: Path) -> None:
        self._system = Driven(
            Path(sys.executable), "transformers_generate", model, scratch=scratch, device=device, arguments={"dtype": "float32"}
        )
        self._batches = [asked[i : i + BATCH] for i in range(0, len(asked), BATCH)]
        self._tokens = sum(request.output_tokens for request in asked)
        self.seconds: list[float] = []
        self._system.round([request.prompt_ids for request in self._batches[0]], 4)

    def round(self, say: Say) -> None:
        took = 0.0
        for batch in self._batches:
            longest = max(request.output_tokens for request in batch)
            took += self._system.round([request.prompt_ids for request in batch], longest).seconds
        self.seconds.append(took)
        say(f"round {len(self.seconds)}: {PEER:22} {self._tokens / took:8.1f} tok/s")

    def close(self) -> None:
        self._system.stop()
