"""Owns the chat questions: a first turn that tells facts, a second turn whose answer uses one of them."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from pagoda_bench.tiny import words
from pagoda_bench.tiny.items import Item, Task, assistant, user


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of fact. `{v}` is its value in every text."""

    name: str
    value: Callable[[Random], str]
    told: tuple[str, ...]
    asked: tuple[str, ...]
    answer: str


def _number(digits: int) -> Callable[[Random], str]:
    return lambda rng: str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def _one_of(values: tuple[str, ...]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(values)


_KINDS = (
    _Kind(
        "name",
        words.person,
        ("My name is {v}.", "I am {v}.", "I'm {v}."),
        ("What is my name?", "What's my name?", "Who am I?"),
        "Your name is {v}.",
    ),
    _Kind("city", words.city, ("I live in {v}.",), ("Where do I live?", "Which city do I live in?"), "You live in {v}."),
    _Kind("home", words.city, ("I was born in {v}.",), ("Where was I born?",), "You were born in {v}."),
    _Kind("age", _number(2), ("I am {v} years old.",), ("How old am I?", "What is my age?"), "You are {v} years old."),
    _Kind("room", _number(3), ("My room number is {v}.",), ("What is my room number?",), "Your room number is {v}."),
    _Kind("code", _number(4), ("My door code is {v}.",), ("What is my door code?",), "Your door code is {v}."),
    _Kind("color", _one_of(words.COLORS), ("My favorite color is {v}.",), ("What is my favorite color?",), "Your favorite color is {v}."),
    _Kind("food", _one_of(words.FOODS), ("My favorite food is {v}.",), ("What is my favorite food?",), "Your favorite food is {v}."),
    _Kind("job", _one_of(words.JOBS), ("I work as a {v}.",), ("What is my job?", "What do I work as?"), "You work as a {v}."),
    _Kind(
        "friend",
        words.person,
        ("My friend is called {v}.",),
        ("What is my friend called?", "Who is my friend?"),
        "Your friend is called {v}.",
    ),
    _Kind("dog", words.person, ("My dog is called {v}.",), ("What is my dog called?",), "Your dog is called {v}."),
    _Kind("cat", words.person, ("My cat is called {v}.",), ("What is my cat called?",), "Your cat is called {v}."),
    _Kind("day", _one_of(words.DAYS), ("My meeting is on {v}.",), ("When is my meeting?",), "Your meeting is on {v}."),
)
_GREETINGS = ("Hello! ", "Hi! ", "Hi, ", "Hello, ")
_REQUESTS = ("", "", "", "", " Please remember that.", " Remember this.")


def generate(rng: Random) -> Item:
    kinds = rng.sample(_KINDS, rng.randint(1, 4))
    values = [kind.value(rng) for kind in kinds]
    told = " ".join(rng.choice(kind.told).format(v=value) for kind, value in zip(kinds, values, strict=True)) + rng.choice(_REQUESTS)
    if rng.random() < 0.3:
        greeting = rng.choice(_GREETINGS)
        told = greeting + (told[0].lower() + told[1:] if greeting.endswith(", ") and told.startswith("My") else told)
    facts = dict(zip((kind.name for kind in kinds), values, strict=True))
    noted = f"Nice to meet you, {facts['name']}." if "name" in facts else "Thank you, I will remember that."
    asked = rng.randrange(len(kinds))
    answer = kinds[asked].answer.format(v=values[asked])
    operands = "|".join(f"{name}={value}" for name, value in sorted(facts.items())) + f"?{kinds[asked].name}"
    question = _casual(rng.choice(kinds[asked].asked), rng)
    return Item("chat", operands, (user(told), assistant(noted), user(question)), answer)


def verify(item: Item, reply: str) -> bool:
    """The reply is the expected sentence."""
    return reply.strip() == item.answer


def _casual(question: str, rng: Random) -> str:
    """Now and then without the question mark or the capital, as people type."""
    if rng.random() < 0.1:
        question = question.removesuffix("?")
    if rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question


TASK = Task("chat", generate, verify)
