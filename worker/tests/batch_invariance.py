"""How often a sequence's logits and greedy tokens depend on what runs beside it: docs/batch-invariance.md has the table.

`python tests/batch_invariance.py [--model DIR] [--dtype bf16] …` in `worker/`. Each prompt runs alone, whole, with a cold cache; then
in crowds of strangers, its prompt cut into chunks as the crowd leaves room. A position counts until the first token that differs.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logits_tap import logits_of
from torch import Tensor

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.request import Request
from pagoda_worker.settings.sources import BUILTIN_DIR

CROWDS = ((3, 512), (15, 64), (31, 40))
"""(strangers, tokens a step may compute)."""


@dataclass(slots=True)
class Tally:
    positions: int = 0
    unequal: int = 0
    """Positions whose logits are not the same bit for bit."""
    worst: float = 0.0
    """Largest difference of a logit."""
    flips: list[float] = field(default_factory=list)
    """The lone run's gap between its two best logits, at each first token that differs."""
    sequences: int = 0

    def __str__(self) -> str:
        gaps = ", ".join(f"{gap:.3g}" for gap in sorted(self.flips, reverse=True)[:4])
        return (
            f"{self.positions} positions, {self.unequal} with other bits (worst {self.worst:.2g}); "
            f"{len(self.flips)} of {self.sequences} sequences change a token" + (f", at gaps {gaps}" if gaps else "")
        )


def compare(config: dict[str, Any], folder: Path, *, prompts: list[list[int]], tokens: int, crowds: Any = CROWDS) -> Tally:
    """Every prompt alone and in every crowd."""
    tally = Tally()
    alone = {tuple(prompt): lines for prompt, lines in _runs(config, folder, prompts, tokens, strangers=0, budget=None)}
    for strangers, budget in crowds:
        for prompt, lines in _runs(config, folder, prompts, tokens, strangers=strangers, budget=budget):
            tally.sequences += 1
            _compare_one(alone[tuple(prompt)], lines, tally)
    return tally


def _compare_one(alone: list[Tensor], crowded: list[Tensor], tally: Tally) -> None:
    for one, other in zip(alone, crowded, strict=True):
        tally.positions += 1
        difference = (one - other).abs().max().item()
        tally.unequal += difference > 0
        tally.worst = max(tally.worst, difference)
        if one.argmax() != other.argmax():
            best = one.topk(2).values
            tally.flips.append((best[0] - best[1]).item())
            return


def _runs(
    config: dict[str, Any], folder: Path, prompts: list[list[int]], tokens: int, *, strangers: int, budget: int | None
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Each prompt's logits, one line per output position."""
    settings = {"device": "cpu", "max_running": strangers + 2, "prefix_caching": False, **config}
    if budget is not None:
        settings["max_batch_tokens"] = budget
    engine = Engine(EngineConfig(model_dir=folder, **settings))
    generator = random.Random(strangers)
    for prompt in prompts:
        with logits_of(engine) as seen:
            for each in range(strangers):
                ids = [generator.randrange(3, engine.facts.vocab_size) for _ in range(generator.randint(1, 70))]
                engine.submit(Request(request_id=f"s{each}", prompt_ids=ids, max_tokens=generator.randint(1, 2 * tokens), ignore_eos=True))
                if each % 2:
                    engine.step()
            engine.submit(Request(request_id="own", prompt_ids=prompt, max_tokens=tokens, ignore_eos=True))
            while engine.has_work:
                engine.step()
        own = [(len(ids), line) for ids, line in seen if ids[: len(prompt)] == prompt]
        yield prompt, [line for _, line in sorted(own, key=lambda item: item[0])]


def random_prompts(count: int, vocab_size: int, *, seed: int = 7, longest: int = 90) -> list[list[int]]:
    generator = random.Random(seed)
    return [[3 + i, *(generator.randrange(3, vocab_size) for _ in range(generator.randint(8, longest)))] for i in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares lone runs with crowded ones.")
    parser.add_argument("--model", type=Path, default=BUILTIN_DIR / "tiny")
    parser.add_argument("--dtype", nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--attention", nargs="*", default=["sdpa"])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--vocab", type=int, default=1000, help="prompts draw from the first so many ids")
    parser.add_argument("--setting", nargs="*", default=[], help="name=true of EngineConfig")
    arguments = parser.parse_args()
    extra = dict.fromkeys(arguments.setting, True)
    for dtype in arguments.dtype:
        for attention in arguments.attention:
            config = {"dtype": dtype, "attention": attention, **extra}
            prompts = random_prompts(arguments.prompts, arguments.vocab)
            print(f"{dtype} {attention}: {compare(config, arguments.model, prompts=prompts, tokens=arguments.tokens)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
