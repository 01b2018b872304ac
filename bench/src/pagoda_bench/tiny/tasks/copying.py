"""Owns the copy questions: repeat a passage of 20 to 80 tokens, or repeat it with one word replaced by another.

Words are drawn at random so that only looking back at the passage answers the question; nothing can be memorized.
"""

from random import Random

from pagoda_bench.tiny import words
from pagoda_bench.tiny.items import Item, Task, user

_COPIES = (
    "Repeat: {text}",
    "Repeat this: {text}",
    "Repeat after me: {text}",
    "Copy this text: {text}",
    "Copy: {text}",
    "Please repeat this text: {text}",
    "Say this again: {text}",
    "Copy the following text exactly: {text}",
)
_EDITS = (
    "Replace {old} with {new}: {text}",
    "Replace {old} by {new}: {text}",
    "Replace the word {old} with {new}: {text}",
    "Replace {old} with {new} in this text: {text}",
    "Replace {old} by {new} in this text: {text}",
    "Copy this text with {old} replaced by {new}: {text}",
    "Change {old} to {new}: {text}",
)
_LISTED = frozenset(words.COMMON + words.GLUE)


def generate(rng: Random) -> Item:
    sentences = _passage(rng)
    text = _render(sentences)
    if rng.random() < 0.4:
        return Item("copy", f"copy|{text}", (user(rng.choice(_COPIES).format(text=text)),), text)
    # The first word of a sentence is capitalized, so only later words are replaced.
    inner = [word for sentence in sentences for word in sentence[1:]]
    listed = [word for word in inner if word in _LISTED]
    old = rng.choice(listed if listed and rng.random() < 0.9 else inner)
    new = words.rare_word(rng) if rng.random() < 0.03 else rng.choice(words.COMMON)
    edited = _render([[sentence[0], *(new if word == old else word for word in sentence[1:])] for sentence in sentences])
    return Item("copy", f"{old}>{new}|{text}", (user(rng.choice(_EDITS).format(old=old, new=new, text=text)),), edited)


def verify(item: Item, reply: str) -> bool:
    """The reply is the expected passage, character by character."""
    return reply.strip() == item.answer


def _passage(rng: Random) -> list[list[str]]:
    """Sentences of lower-case words, 14 to 44 words in all (20 to 80 tokens); words repeat now and then, as they do in prose."""
    glue = 0.0 if rng.random() < 0.5 else 0.15
    rare = 0.0 if rng.random() < 0.5 else 0.15
    count = rng.randint(14, 26 if rare else 44)  # a rare word is about four tokens
    drawn = rng.sample(words.COMMON, count)
    for i in range(count):
        kind = rng.random()
        if kind < glue:
            drawn[i] = rng.choice(words.GLUE)
        elif kind < glue + rare:
            drawn[i] = words.rare_word(rng)
        elif kind > 0.99:
            drawn[i] = rng.choice(drawn)
    sentences, start = [], 0
    while start < count:
        end = start + rng.randint(4, 12)
        if count - end < 3:
            end = count
        sentences.append(drawn[start:end])
        start = end
    return sentences


def _render(sentences: list[list[str]]) -> str:
    return " ".join(f"{' '.join([sentence[0].capitalize(), *sentence[1:]])}." for sentence in sentences)


TASK = Task("copy", generate, verify)
