"""What is asked of the engine: held-out items of the tiny model's tasks, other ones in every round, and the ways to guess. Pure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pagoda_bench.tiny.corpus import TASKS, held_out_items
from pagoda_bench.tiny.decoding import prompt_ids

MIX = "mix"
COPY = "copy"
"""The task whose answers repeat what the prompt says."""
SYSTEMS = ("none", "ngram", "suffix", "draft")
MAX_TOKENS = 96
"""No answer of the tiny model is as long; each ends where it ends."""
DRAFT_TOKENS = 6
KV_CACHE_BYTES = 64 << 20
"""Three times what 64 streams of the shipped target hold at once. Of a larger one every block would be memory that nobody had touched yet,
in every engine anew: what the host takes to hand that out differs by more than guessing at 64 streams may cost."""


@dataclass(frozen=True, slots=True)
class Case:
    """Answers of one task, or of all in turn, `streams` at a time."""

    task: str
    streams: int
    items: int
    """In all."""

    @property
    def name(self) -> str:
        return f"c={self.streams}" if self.task == MIX else f"c={self.streams} {self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Of models: folders, and how they are run."""

    target: Path
    draft: Path
    note: str
    threads: int
    kv_cache_bytes: int = KV_CACHE_BYTES
    parts: int = 1
    """The work is divided by it, for a target whose tokens take longer."""
    result: str | None = None
    """Name of the result file and of the part of the document that are this pair's; None: of no pair of ours."""


def cases(*, scale: int) -> list[Case]:
    """scale: what the work is divided by."""
    alone = [Case(task.name, 1, 64 // scale) for task in TASKS]
    mixed = ((1, 160), (8, 480), (32, 1120), (64, 1600))
    return [*alone, *(Case(MIX, streams, items // scale) for streams, items in mixed)]


def prompts_of(case: Case, tokenizer: Tokenizer, *, number: int) -> list[list[int]]:
    """Of round `number`: no prompt comes twice, or an earlier answer could simply be looked up."""
    tasks = [task for task in TASKS if case.task in (MIX, task.name)]
    each = -(-case.items // len(tasks))
    asked = [[item.messages for item in held_out_items(task, each, seed=1 + number)] for task in tasks]
    in_turn = [messages for turn in itertools.zip_longest(*asked) for messages in turn if messages is not None]
    return prompt_ids(tokenizer, in_turn[: case.items])


def job(case: Case, system: str, prompts: Sequence[Sequence[int]], pair: Pair, *, device: str) -> Mapping[str, object]:
    guessing: dict[str, object] = {} if system == "none" else {"speculative": system, "draft_tokens": DRAFT_TOKENS}
    if system == "draft":
        guessing["draft_dir"] = str(pair.draft)
    return {
        "model_dir": str(pair.target),
        "device": device,
        "threads": pair.threads,
        "dtype": "bf16",
        "max_running": case.streams,
        "kv_cache_bytes": pair.kv_cache_bytes,
        "prompts": [list(prompt) for prompt in prompts],
        "max_tokens": MAX_TOKENS,
        **guessing,
    }
