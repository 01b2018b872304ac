"""Owns the addition questions: two numbers of one to four digits, answered by column totals from the right and then the sum."""

import re
from random import Random

from pagoda_bench.tiny.items import Item, Task, user

_QUESTIONS = (
    "What is {a}{plus}{b}?",
    "What is {a}{plus}{b}?",
    "What is {a}{plus}{b}?",
    "What is {a}{plus}{b}",
    "what is {a}{plus}{b}?",
    "what's {a}{plus}{b}?",
    "{a}{plus}{b}",
    "{a}{plus}{b} =",
    "{a}{plus}{b}=",
    "{a}{plus}{b}?",
    "Add {a} and {b}.",
    "Add {a} and {b}",
    "add {a} and {b}",
    "Compute {a}{plus}{b}.",
    "Compute {a}{plus}{b}",
    "Calculate {a}{plus}{b}",
    "Please add {a} and {b}.",
    "What is {a} plus {b}?",
    "How much is {a}{plus}{b}?",
    "How much is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "Can you add {a} and {b}?",
)
_PLUS = (" + ", " + ", " + ", "+", " +", "+ ")
_DIGITS = (1, 2, 2, 3, 3, 3, 4, 4, 4)


def column_totals(a: int, b: int) -> list[int]:
    """What one writes when adding by hand: per column from the right, the two digits plus the carry."""
    totals, carry = [], 0
    while True:
        total = a % 10 + b % 10 + carry
        totals.append(total)
        a, b, carry = a // 10, b // 10, total // 10
        if a == 0 and b == 0:
            return totals


def answer_of(a: int, b: int) -> str:
    columns = ", ".join(map(str, column_totals(a, b)))
    return f"Adding {a} + {b} from the right: {columns}. The sum is {a + b}."


def generate(rng: Random) -> Item:
    a, b = _number(rng), _number(rng)
    question = rng.choice(_QUESTIONS).format(a=a, b=b, plus=rng.choice(_PLUS))
    low, high = sorted((a, b))
    return Item("addition", f"{low}+{high}", (user(question),), answer_of(a, b))


def verify(item: Item, reply: str) -> bool:
    """The reply ends by naming the sum; its scratch work may say anything."""
    low, high = map(int, item.operands.split("+"))
    named = re.search(r"The sum is (\d+)\.?\s*$", reply)
    return named is not None and int(named[1]) == low + high


def _number(rng: Random) -> int:
    digits = rng.choice(_DIGITS)
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


TASK = Task("addition", generate, verify)
