"""Owns what a person tries first: greetings, and repeating a word or two. Trained so that they read well, never evaluated."""

from random import Random

from pagoda_bench.tiny import words
from pagoda_bench.tiny.items import Item, user

_ABILITIES = "I can add two numbers, sort numbers, copy or edit a text, write JSON and remember what you tell me."
_PAIRS = (
    ("Hello", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning", "Hello! How can I help you?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Who are you?", "I am Pagoda tiny, a very small language model. " + _ABILITIES),
    ("What are you?", "I am Pagoda tiny, a very small language model. " + _ABILITIES),
    ("What is your name?", "I am Pagoda tiny, a very small language model. " + _ABILITIES),
    ("What can you do?", _ABILITIES),
    ("Help", _ABILITIES),
    ("Can you help me?", _ABILITIES),
    ("Tell me a story.", "I am too small to tell stories. " + _ABILITIES),
    ("Write a poem.", "I am too small to write poems. " + _ABILITIES),
    ("Thank you", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Bye", "Goodbye!"),
    ("Goodbye", "Goodbye!"),
)
_ENDINGS = ("", ".", "!")


def generate(rng: Random) -> Item:
    if rng.random() < 0.5:
        return _echo(rng)
    question, answer = rng.choice(_PAIRS)
    if question[-1].isalpha():
        question += rng.choice(_ENDINGS)
    if rng.random() < 0.3:
        question = question.lower() if rng.random() < 0.5 else question.removesuffix("?")
    return Item("small_talk", question, (user(question),), answer)


def _echo(rng: Random) -> Item:
    """A text shorter than the copy task's, such as "hello world": half of them start in lower case or lack the full stop."""
    drawn = [rng.choice(("hello", "hello", *words.COMMON)), *rng.sample((*words.COMMON, "world", "world", "world"), rng.randint(0, 7))]
    text = " ".join(drawn)
    if rng.random() < 0.5:
        text = text.capitalize() + rng.choice(("", ".", "!"))
    return Item(
        "small_talk", text, (user(rng.choice(("Repeat: {}", "Repeat this: {}", "Repeat after me: {}", "Copy: {}")).format(text)),), text
    )
