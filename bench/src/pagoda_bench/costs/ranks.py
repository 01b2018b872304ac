"""What ranks cost or win on the same cores: one process with one thread, with two, and two ranks with a thread each.

Called by `run.py`. Ratios are taken within a round.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from pagoda_bench.costs.jobs import Job
from pagoda_bench.costs.measure import Answers, Place, Say, row_of, values_of
from pagoda_bench.offline import OfflineWorker
from pagoda_bench.peers.rounds import turned
from pagoda_bench.results import Row
from pagoda_bench.tour.workload import VOCAB

THREADS, RANKS = "1 process, 2 threads", "2 ranks, 1 thread each"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "1 process, 1 thread": {"threads": 1},
    THREADS: {"threads": 2},
    RANKS: {"threads": 2, "tensor_parallel": 2},
}
ON_GPUS: Mapping[str, Mapping[str, Any]] = {THREADS: {}, RANKS: {"tensor_parallel": 2}}
"""There a rank has a GPU, and threads do not matter."""
STREAMS = (1, 8, 32)
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16


def tensor_parallel(place: Place, model: str, *, rounds: int, say: Say) -> Iterator[Row]:
    """Raises PeerUnavailable."""
    ways = WAYS if place.device == "cpu" else ON_GPUS
    found: dict[int, Answers] = {streams: {name: [] for name in ways} for streams in STREAMS}
    for number in range(rounds):
        for name in turned(list(ways), number):
            # In a process of its own: threads of one way must not wait in another's.
            with closing(OfflineWorker(log=place.scratch / "worker.log")) as worker:
                answers = worker.answer({**place.base("bf16"), **_job(), **ways[name]})["answers"]
            for streams, answer in zip(STREAMS, answers, strict=True):
                found[streams][name].append(answer)
            said = ", ".join(f"{answer['tokens_per_s']:.1f}" for answer in answers)
            say(f"round {number + 1}: {model}, {name:24} {said} tok/s at {', '.join(map(str, STREAMS))} streams")
    for streams in STREAMS:
        yield from ranks_rows(f"{model} bf16 c={streams}", found[streams])


def _job() -> Job:
    prompts = {"count": STREAMS[0], "prompt_tokens": PROMPT_TOKENS, "vocab": VOCAB[1]}
    common = {"max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "warmup": True, "prefix_caching": False}
    return {**common, "random": prompts, "counts": STREAMS}


def ranks_rows(case: str, found: Answers) -> Iterator[Row]:
    for way, answers in found.items():
        yield row_of(case, "output_tokens_per_s", "tokens/s", values_of(answers, "tokens_per_s"), system=way)
        yield row_of(case, "decode_step_s", "s", values_of(answers, "decode_step_ms", 1e-3), system=way)
        yield row_of(case, "ttft_max_s", "s", values_of(answers, "ttft_max_ms", 1e-3), system=way)
        pairs = zip(values_of(found[RANKS], "tokens_per_s"), values_of(answers, "tokens_per_s"), strict=True)
        if way != RANKS:
            yield row_of(case, "speed_of_ranks_ratio", "ratio", [ranks / other for ranks, other in pairs], system=way)
