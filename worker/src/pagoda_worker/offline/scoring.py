"""`python -m pagoda_worker.offline.scoring`: one engine after the other, asked what it says to given texts. For `pagoda bench quality`.

stdin has a question a line until it ends, and each answer is a line of JSON:

    {"open": {"model_dir", "engine"?: as spec.engine, "given_text"?: true, "device"?, "threads"?}}        → facts, bytes
    {"distributions": {"documents": [[ids]], "path": "prefill" or "decode", "file": where}}   → a .npy, float32 [places, V]
    {"answers": {"prompts": [[ids]], "max_tokens", "ignore_eos"?}}                   → greedy ids, tokens/s (batch.py)

`open` drops the engine before it. With given_text nothing is planned ahead, no prefix is shared, and prompts are computed in chunks of
CHUNK_TOKENS, so that most of what a place sees is read from the cache. What cannot be answered is answered with {"error": one line}.
"""

import gc
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pagoda_worker.engine import Engine
from pagoda_worker.errors import WorkerError
from pagoda_worker.offline.batch import timed
from pagoda_worker.offline.given_text import GivenPath, compute, count_places
from pagoda_worker.offline.weighing import weigh
from pagoda_worker.settings.engine import parse_engine

CHUNK_TOKENS = 32
TOGETHER = 32
"""Documents that decode in one step."""


class Scoring:
    def __init__(self) -> None:
        self._engine: Engine | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises WorkerError for a model that cannot be loaded or a text it cannot take, ValueError for a question that is none."""
        if "open" in question:
            return self._open(question["open"])
        if "distributions" in question:
            return self._distributions(**question["distributions"])
        if "answers" in question:
            return self._answers(**question["answers"])
        raise ValueError(f"a question is open, distributions or answers, not {sorted(question)}")

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise ValueError("open a model first")
        return self._engine

    def _open(self, job: dict[str, Any]) -> dict[str, Any]:
        self._engine = None
        gc.collect()  # two models at once may be more than the memory holds
        where = {name: job[name] for name in ("device", "threads") if job.get(name) is not None}
        config = parse_engine(json.dumps(job.get("engine", {})), model_dir=Path(job["model_dir"]), self_test=False, **where)
        if job.get("given_text"):
            config = replace(
                config,
                max_running=TOGETHER,
                max_batch_tokens=CHUNK_TOKENS,
                prefix_caching=False,
                async_scheduling=False,
                cuda_graphs=False,
            )
        engine = self._engine = Engine(config)
        facts = engine.facts
        return {
            "architecture": facts.architecture,
            "dtype": facts.dtype,
            "device": facts.device,
            "kernels": facts.kernels,
            "vocab_size": facts.vocab_size,
            "max_model_len": facts.max_model_len,
            **asdict(weigh(engine)),
        }

    def _distributions(self, documents: list[list[int]], path: GivenPath, file: str) -> dict[str, Any]:
        shape = (count_places(documents), self.engine.facts.vocab_size)
        out = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        compute(self.engine, documents, path, out)
        out.flush()
        return {"places": len(out)}

    def _answers(self, prompts: list[list[int]], max_tokens: int, ignore_eos: bool = False) -> dict[str, Any]:
        return timed(self.engine, prompts, max_tokens, ignore_eos)


def main() -> int:
    scoring = Scoring()
    for line in sys.stdin:
        try:
            answer = scoring.answer(json.loads(line))
        except (WorkerError, ValueError, KeyError, TypeError) as error:
            answer = {"error": f"{error!s}"}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
