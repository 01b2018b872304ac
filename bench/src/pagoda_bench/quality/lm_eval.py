"""`python -m pagoda_bench.quality.lm_eval FOLDER`: held-out questions of the tiny model as data for lm-evaluation-harness.

The tasks that read it are bench/lm-eval/*.yaml, the commands docs/quality.md's. Knows nothing of that harness but its data's columns.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from pagoda_bench.tiny.corpus import held_out_items
from pagoda_bench.tiny.items import Item
from pagoda_bench.tiny.tasks import recall, sorting
from pagoda_bench.tiny.tokenizer import render

COUNT = 200
CHOICES = 4


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0] if arguments else ".")
    for name, lines in (("tiny_recall", recall_lines(COUNT)), ("tiny_sorting", sorting_lines(COUNT))):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        print(f"wrote {path}")
    return 0


def sorting_lines(count: int) -> Iterator[dict[str, object]]:
    for item in held_out_items(sorting.TASK, count):
        yield {"prompt": _prompt(item), "answer": item.answer}


def recall_lines(count: int) -> Iterator[dict[str, object]]:
    """The wrong choices are other questions' answers in the same words but for what was told."""
    items, rng = held_out_items(recall.TASK, 4 * count), Random("choices")
    by_words: dict[str, set[str]] = {}
    for item in items:
        by_words.setdefault(_words(item.answer), set()).add(item.answer)
    told = 0
    for item in items:
        others = sorted(by_words[_words(item.answer)] - {item.answer})
        if len(others) < CHOICES - 1 or told == count:
            continue
        told += 1
        choices = rng.sample([item.answer, *rng.sample(others, CHOICES - 1)], CHOICES)
        yield {"prompt": _prompt(item), "choices": choices, "answer": choices.index(item.answer)}


def _words(answer: str) -> str:
    return " ".join(answer.split()[:3])


def _prompt(item: Item) -> str:
    return render(item.messages, add_generation_prompt=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
