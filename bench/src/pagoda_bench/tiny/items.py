"""Owns the shape of one verifiable item and the rule that splits held-out items from training items.

Knows no task and no model. Called by the task generators, the corpus and the evaluation.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypedDict


class Message(TypedDict):
    """One chat message as the OpenAI API spells it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Item:
    """A question with exactly one right answer."""

    task: str
    operands: str
    """Canonical text of what the answer depends on: two phrasings of one question share it, so they fall on the same side of the split."""
    messages: tuple[Message, ...]
    """Ends with the user's question; earlier turns, if any, carry the assistant's reference answers."""
    answer: str
    """The reference answer, scratch work included."""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question: how to ask it and how to judge a reply."""

    name: str
    generate: Callable[[Random], Item]
    verify: Callable[[Item, str], bool]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def is_held_out(item: Item) -> bool:
    """One sixteenth of all operands, by hash: the same on every machine and for every seed."""
    digest = hashlib.blake2b(f"{item.task}|{item.operands}".encode()).digest()
    return digest[0] % 16 == 0
