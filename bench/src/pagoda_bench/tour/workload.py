"""The one workload of all stages: chat-like requests that share a beginning, most answers short, a few long. Pure; from a fixed seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pagoda_bench.tour.stages import BATCH, CONTEXT

SHARED_TOKENS = 48
"""What a system prompt is in life: every request begins with it."""
OWN_TOKENS = (8, 32)
LONG_OWN_TOKENS = 240
"""One request in twelve brings a document."""
OUTPUT_TOKENS = (8, 16, 16, 24, 24, 32, 48, 160)
"""Each batch of eight has these in some order: where lengths are alike, static batching loses nothing."""
VOCAB = (10, 200)
"""Ids that are ordinary text in every vocabulary we know."""
ARRIVING = 16
"""So many of the requests, spread over time, for the latencies of a server that is not full."""

assert len(OUTPUT_TOKENS) == BATCH
assert SHARED_TOKENS + LONG_OWN_TOKENS + max(OUTPUT_TOKENS) <= CONTEXT


@dataclass(frozen=True, slots=True)
class Request:
    prompt_ids: list[int]
    output_tokens: int


def requests(count: int, *, seed: int = 0) -> list[Request]:
    """A multiple of eight, so that static batching has no batch that waits for its last member."""
    assert count % BATCH == 0
    source = random.Random(seed)
    shared = _ids(source, SHARED_TOKENS)
    lengths = [length for _ in range(count // BATCH) for length in source.sample(OUTPUT_TOKENS, BATCH)]
    owns = [LONG_OWN_TOKENS if i % 12 == 7 else source.randint(*OWN_TOKENS) for i in range(count)]
    return [Request(shared + _ids(source, own), length) for own, length in zip(owns, lengths, strict=True)]


def job(asked: Sequence[Request], *, interval_s: float = 0.0) -> list[dict[str, object]]:
    """As the worker's offline jobs want them; one every `interval_s`, 0: all at once."""
    return [
        {"prompt_ids": request.prompt_ids, "max_tokens": request.output_tokens, "at_s": i * interval_s} for i, request in enumerate(asked)
    ]


def _ids(source: random.Random, count: int) -> list[int]:
    return [source.randrange(*VOCAB) for _ in range(count)]
