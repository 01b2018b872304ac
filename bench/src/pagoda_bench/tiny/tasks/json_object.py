"""Owns the JSON questions: three to six stated facts that become one JSON object."""

import json
from dataclasses import dataclass
from random import Random

from pagoda_bench.tiny import words
from pagoda_bench.tiny.items import Item, Task, user

Value = str | int | bool


@dataclass(frozen=True, slots=True)
class _Fact:
    key: str
    value: Value
    sentence: str

    @property
    def stated(self) -> str:
        """The value as people write it: yes and no for booleans."""
        return ("yes" if self.value else "no") if isinstance(self.value, bool) else str(self.value)


_KEYS = ("name", "age", "city", "color", "job", "pet", "food", "score", "member", "active")
_LEADS = (
    "Write a JSON object",
    "Make a JSON object",
    "Fill in a JSON object",
    "Give me JSON",
    "Create a JSON object",
    "Write JSON",
    "write JSON",
)
_TURN_INTO = ("Turn this into JSON:", "Convert to JSON:", "As JSON:", "Write this as JSON:", "Make JSON from this:", "JSON:")


def generate(rng: Random) -> Item:
    facts = [_fact(key, rng) for key in rng.sample(_KEYS, rng.randint(3, 6))]
    if rng.random() < 0.6:
        keys = [fact.key for fact in facts]
        fields = f"{', '.join(keys[:-1])} and {keys[-1]}" if rng.random() < 0.6 else ", ".join(keys)
        told = rng.sample(facts, len(facts))
        question = f"{rng.choice(_LEADS)} with the fields {fields}. {_tell(told, rng)}"
    else:
        question = f"{rng.choice(_TURN_INTO)} {_tell(facts, rng)}"
    expected = json.dumps({fact.key: fact.value for fact in facts}, ensure_ascii=False)
    operands = json.dumps({fact.key: fact.value for fact in facts}, ensure_ascii=False, sort_keys=True)
    return Item("json", operands, (user(question),), expected)


def verify(item: Item, reply: str) -> bool:
    """The reply parses as JSON and equals the expected object, whatever the order of its fields."""
    try:
        parsed = json.loads(reply)
    except json.JSONDecodeError:
        return False
    # NOTE: 1 == True in Python; comparing the canonical texts keeps numbers and booleans apart.
    return json.dumps(parsed, ensure_ascii=False, sort_keys=True) == item.operands


def _tell(facts: list[_Fact], rng: Random) -> str:
    style = rng.random()
    if style < 0.4:
        return " ".join(fact.sentence for fact in facts)
    if style < 0.6:
        return " ".join(f"The {fact.key} is {fact.stated}." for fact in facts)
    if style < 0.9:
        return ", ".join(f"{fact.key}: {fact.stated}" for fact in facts)
    return ", ".join(f"{fact.key} {fact.stated}" for fact in facts)


def _fact(key: str, rng: Random) -> _Fact:
    value: Value
    match key:
        case "name":
            value = words.person(rng)
            sentence = rng.choice((f"My name is {value}.", f"This is {value}."))
        case "age":
            value = rng.randint(1, 99)
            sentence = rng.choice((f"I am {value} years old.", f"I am {value}."))
        case "city":
            value = words.city(rng)
            sentence = f"I live in {value}."
        case "color":
            value = rng.choice(words.COLORS)
            sentence = rng.choice((f"I like the color {value}.", f"My favorite color is {value}."))
        case "job":
            value = rng.choice(words.JOBS)
            sentence = f"I work as a {value}."
        case "pet":
            value = rng.choice(words.ANIMALS)
            sentence = f"I have a {value}."
        case "food":
            value = rng.choice(words.FOODS)
            sentence = rng.choice((f"I like to eat {value}.", f"My favorite food is {value}."))
        case "score":
            value = rng.randint(0, 9999) if rng.random() < 0.3 else rng.randint(0, 999)
            sentence = rng.choice((f"My score is {value}.", f"I scored {value} points."))
        case "member":
            value = rng.random() < 0.5
            sentence = "I am a member." if value else "I am not a member."
        case _:
            value = rng.random() < 0.5
            sentence = "My account is active." if value else "My account is not active."
    return _Fact(key, value, sentence)


TASK = Task("json", generate, verify)
