"""Owns the mix: which tasks a training conversation holds, how conversations are drawn, which items are held out.

Knows no tokenizer and no model. Called by tokenizer training, model training, evaluation and the look-up baseline.
"""

from collections.abc import Iterator, Mapping
from random import Random

from pagoda_bench.tiny.items import Item, Message, Task, assistant, is_held_out
from pagoda_bench.tiny.tasks import addition, copying, json_object, recall, small_talk, sorting

TASKS: tuple[Task, ...] = (addition.TASK, sorting.TASK, json_object.TASK, copying.TASK, recall.TASK)
DEFAULT_MIX: Mapping[str, float] = {"addition": 0.22, "sorting": 0.26, "json": 0.16, "copy": 0.24, "chat": 0.06, "small_talk": 0.06}
"""Share of each task among a conversation's items; small talk is trained but not evaluated."""

_GENERATORS = {task.name: task.generate for task in TASKS} | {"small_talk": small_talk.generate}
_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "You are a careful assistant. Answer the question.",
)


def training_items(mix: Mapping[str, float], rng: Random) -> Iterator[Item]:
    """An endless stream of items on the training side of the split."""
    names, weights = list(mix), list(mix.values())
    while True:
        item = _GENERATORS[rng.choices(names, weights)[0]](rng)
        if item.task == "small_talk" or not is_held_out(item):
            yield item


def training_conversations(mix: Mapping[str, float], rng: Random) -> Iterator[list[Message]]:
    """An endless stream of conversations: mostly one item, sometimes several in a row, sometimes under a system message."""
    items = training_items(mix, rng)
    while True:
        count = 1 if rng.random() < 0.8 else rng.randint(2, 4)
        yield conversation([next(items) for _ in range(count)], system=rng.choice(_SYSTEM) if rng.random() < 0.15 else None)


def conversation(items: list[Item], system: str | None = None) -> list[Message]:
    """The items' turns in order, each with its reference answer."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for item in items:
        messages += [*item.messages, assistant(item.answer)]
    return messages


def held_out_items(task: Task, count: int, seed: int = 0) -> list[Item]:
    """`count` held-out items of one task with pairwise different operands, the same for every caller with this seed."""
    return _draw(task, count, Random(f"held-out {task.name} {seed}"), held_out=True)


def lookup_items(task: Task, count: int, seed: int = 0) -> list[Item]:
    """`count` training items of one task with pairwise different operands: what the look-up baseline may look up."""
    return _draw(task, count, Random(f"look-up {task.name} {seed}"), held_out=False)


def _draw(task: Task, count: int, rng: Random, held_out: bool) -> list[Item]:
    found: dict[str, Item] = {}
    while len(found) < count:
        item = task.generate(rng)
        if is_held_out(item) == held_out:
            found.setdefault(item.operands, item)
    return list(found.values())
