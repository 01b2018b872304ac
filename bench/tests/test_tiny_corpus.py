"""The corpus: what its items promise, how held-out items are kept out of training, and that verifiers can say no."""

import json
from itertools import islice, pairwise
from random import Random

import pytest

from pagoda_bench.tiny import corpus
from pagoda_bench.tiny.items import Item, Task, is_held_out
from pagoda_bench.tiny.tasks import addition

EACH_TASK = pytest.mark.parametrize("task", corpus.TASKS, ids=lambda task: task.name)


def items(task: Task, count: int = 300) -> list[Item]:
    rng = Random(7)
    return [task.generate(rng) for _ in range(count)]


@EACH_TASK
def test_the_reference_answer_is_right(task: Task) -> None:
    assert all(task.verify(item, item.answer) for item in items(task))


@EACH_TASK
def test_a_neighbours_answer_is_wrong(task: Task) -> None:
    drawn = items(task)
    wrong = [(item, other) for item, other in pairwise(drawn) if item.answer != other.answer]
    assert len(wrong) > 200
    accepted = [(item, other) for item, other in wrong if task.verify(item, other.answer)]
    assert all(item.task == "addition" and last_number(item) == last_number(other) for item, other in accepted)


@EACH_TASK
@pytest.mark.parametrize(
    "damage", [lambda text: "", lambda text: text[: len(text) // 2], lambda text: text + " 7"], ids=["empty", "half", "more"]
)
def test_a_damaged_answer_is_wrong(task: Task, damage) -> None:
    assert not any(task.verify(item, damaged) for item in items(task) if (damaged := damage(item.answer)) != item.answer)


def test_json_keeps_numbers_booleans_and_texts_apart() -> None:
    task = next(task for task in corpus.TASKS if task.name == "json")
    item = next(item for item in items(task) if "true" in item.answer and '"age"' in item.answer)
    expected = json.loads(item.answer)
    assert task.verify(item, json.dumps(dict(reversed(expected.items()))))
    assert not task.verify(item, item.answer.replace("true", "1"))
    assert not task.verify(item, json.dumps(expected | {"age": str(expected["age"])}))


@pytest.mark.parametrize(("a", "b", "totals"), [(27, 46, [13, 7]), (999, 1, [10, 10, 10]), (0, 0, [0]), (5, 9999, [14, 10, 10, 10])])
def test_the_scratch_work_of_an_addition_carries(a: int, b: int, totals: list[int]) -> None:
    assert addition.column_totals(a, b) == totals


def test_training_never_draws_a_held_out_item() -> None:
    drawn = islice(corpus.training_items(corpus.DEFAULT_MIX, Random(1)), 4000)
    assert not any(is_held_out(item) for item in drawn if item.task != "small_talk")


@EACH_TASK
def test_held_out_and_training_operands_are_disjoint(task: Task) -> None:
    held = {item.operands for item in corpus.held_out_items(task, 200)}
    assert len(held) == 200
    assert held.isdisjoint(item.operands for item in corpus.lookup_items(task, 2000))


@EACH_TASK
def test_about_a_sixteenth_is_held_out(task: Task) -> None:
    drawn = {item.operands: item for item in items(task, 4000)}.values()
    assert 0.04 < sum(map(is_held_out, drawn)) / len(drawn) < 0.09


def test_swapping_the_operands_does_not_leave_the_held_out_side() -> None:
    a, b = (Item("addition", operands, (), "") for operands in ("3+5", "5+3"))
    generated = {item.operands for item in items(addition.TASK, 2000)}
    assert a.operands in generated
    assert b.operands not in generated


@EACH_TASK
def test_held_out_items_are_the_same_for_every_caller(task: Task) -> None:
    assert corpus.held_out_items(task, 20) == corpus.held_out_items(task, 20)


def test_conversations_mix_single_and_several_turns_with_and_without_a_system_message() -> None:
    drawn = list(islice(corpus.training_conversations(corpus.DEFAULT_MIX, Random(3)), 400))
    assert all(conversation[-1]["role"] == "assistant" for conversation in drawn)
    assert {conversation[0]["role"] for conversation in drawn} == {"system", "user"}
    assert max(map(len, drawn)) >= 6


def last_number(item: Item) -> int:
    low, high = map(int, item.operands.split("+"))
    return low + high
