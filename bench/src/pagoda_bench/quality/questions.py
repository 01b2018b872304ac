"""Questions whose answers a program can judge: the tiny models' tasks, or prompts with one right answer from a JSONL file.

Knows prompts as ids and replies as ids; whoever computes the replies is somebody else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from pagoda_bench.quality.corpus import first_questions
from pagoda_bench.tiny.corpus import TASKS, held_out_items
from pagoda_bench.tiny.decoding import MAX_NEW_TOKENS
from pagoda_bench.tiny.items import Item, Task
from pagoda_bench.tiny.tokenizer import render


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions of one kind."""

    name: str
    prompts: Sequence[Sequence[int]]
    right: Callable[[int, str], bool]
    """(number of the question, reply) → whether it is right."""
    max_tokens: int = MAX_NEW_TOKENS


def tiny_questions(tokenizer: Tokenizer, per_task: int) -> list[QuestionSet]:
    """Held-out items of every task, the first of those that `make train-tiny`'s evaluation counts."""
    return [_of_task(task, held_out_items(task, per_task), tokenizer) for task in TASKS] if per_task else []


def _of_task(task: Task, items: Sequence[Item], tokenizer: Tokenizer) -> QuestionSet:
    prompts = [tokenizer.encode(render(item.messages, add_generation_prompt=True)).ids for item in items]
    return QuestionSet(task.name, prompts, lambda number, reply: task.verify(items[number], reply))


def read_questions(path: Path, tokenizer: Tokenizer, count: int) -> list[QuestionSet]:
    """Right is a reply whose stripped text is the answer's, or begins with it on a line of its own. Raises SettingsError."""
    found = first_questions(path, count)
    prompts = [tokenizer.encode(prompt).ids for prompt, _ in found]
    answers = [answer.strip() for _, answer in found]
    longest = max((len(tokenizer.encode(answer).ids) for answer in answers), default=0)
    return [QuestionSet(path.stem, prompts, lambda number, reply: _first_lines(reply, answers[number]) == answers[number], longest + 8)]


def _first_lines(reply: str, answer: str) -> str:
    """As many lines of the reply as the answer has: what a base model writes after them is another example."""
    return "\n".join(reply.strip().splitlines()[: answer.count("\n") + 1]).strip()


def percent_right(questions: QuestionSet, replies: Sequence[Sequence[int]], tokenizer: Tokenizer) -> float:
    right = sum(questions.right(number, tokenizer.decode(list(reply))) for number, reply in enumerate(replies))
    return 100 * right / len(questions.prompts)
