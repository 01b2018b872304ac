"""Owns the sorting questions: three to eight integers from 0 to 99, repeats allowed, answered in ascending order."""

import re
from random import Random

from pagoda_bench.tiny.items import Item, Task, user

_QUESTIONS = (
    "Sort these numbers: {list}",
    "Sort these numbers: {list}",
    "Sort these numbers: {list}",
    "Sort these numbers: {list}.",
    "sort these numbers: {list}",
    "Sort the numbers {list}.",
    "Sort: {list}",
    "sort {list}",
    "Sort {list}",
    "Sort {list}.",
    "Sort [{list}]",
    "Please sort these numbers: {list}.",
    "Sort in ascending order: {list}",
    "Sort these numbers from smallest to largest: {list}",
    "Put these numbers in order: {list}",
    "Can you sort {list}?",
    "Order these numbers: {list}",
)
_SEPARATORS = (", ", ", ", ", ", ", ", " ", ",")


def generate(rng: Random) -> Item:
    largest = 9 if rng.random() < 0.15 else 99  # people try single digits first
    numbers = [rng.randint(0, largest) for _ in range(rng.randint(3, 8))]
    if rng.random() < 0.1:
        numbers[0] = numbers[-1]
    separator = rng.choice(_SEPARATORS)
    listed = separator.join(map(str, numbers))
    if separator == ", " and rng.random() < 0.1:
        listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    ordered = ", ".join(map(str, sorted(numbers)))
    return Item("sorting", ordered, (user(rng.choice(_QUESTIONS).format(list=listed)),), ordered)


def verify(item: Item, reply: str) -> bool:
    """The reply's numbers are the question's, in ascending order, no more and no fewer."""
    return re.findall(r"\d+", reply) == item.operands.split(", ")


TASK = Task("sorting", generate, verify)
