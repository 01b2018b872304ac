"""Owns the scores: exact match per task by greedy decoding, the nearest-neighbour look-up that a model must clearly beat, and how
often the draft would propose the target's next token.
"""

from collections.abc import Mapping, Sequence
from zlib import crc32

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from pagoda_bench.tiny.corpus import TASKS, held_out_items, lookup_items
from pagoda_bench.tiny.decoding import greedy_ids, greedy_replies, prompt_ids
from pagoda_bench.tiny.items import Item, Task
from pagoda_bench.tiny.tokenizer import render

Scores = Mapping[str, float]
"""Percent, by task name."""

_BUCKETS = 4096


def exact_match(model: LlamaForCausalLM, tokenizer: Tokenizer, items_per_task: int) -> Scores:
    """Share of held-out items answered rightly."""
    scores = {}
    for task in TASKS:
        items = held_out_items(task, items_per_task)
        scores[task.name] = _share(task, items, greedy_replies(model, tokenizer, [item.messages for item in items]))
    return scores


def lookup_match(items_per_task: int, known_per_task: int) -> Scores:
    """The same score for a look-up: the answer of the training item whose prompt is most similar (cosine of character trigrams)."""
    scores = {}
    for task in TASKS:
        items, known = held_out_items(task, items_per_task), lookup_items(task, known_per_task)
        nearest = (_trigrams(items) @ _trigrams(known).T).argmax(dim=1).tolist()
        scores[task.name] = _share(task, items, [known[i].answer for i in nearest])
    return scores


@torch.inference_mode()
def agreement(target: LlamaForCausalLM, draft: LlamaForCausalLM, tokenizer: Tokenizer, items_per_task: int) -> Scores:
    """Share of the target's greedy tokens that the draft, given all tokens before it, would have chosen too."""
    shares = {}
    for task in TASKS:
        prompts = prompt_ids(tokenizer, [item.messages for item in held_out_items(task, items_per_task)])
        same = total = 0
        for prompt, reply in zip(prompts, greedy_ids(target, prompts), strict=True):
            proposed = draft(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].argmax(-1)
            same += int((proposed == torch.tensor(reply)).sum())
            total += len(reply)
        shares[task.name] = 100 * same / total
    return shares


def table(columns: Mapping[str, Scores]) -> str:
    """A Markdown table: one row per task, one column per named scores."""
    lines = ["| task | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {task.name} | " + " | ".join(f"{scores[task.name]:.1f}" for scores in columns.values()) + " |" for task in TASKS]
    return "\n".join(lines)


def _share(task: Task, items: Sequence[Item], replies: Sequence[str]) -> float:
    return 100 * sum(task.verify(item, reply) for item, reply in zip(items, replies, strict=True)) / len(items)


def _trigrams(items: Sequence[Item]) -> Tensor:
    """Unit vectors [items, _BUCKETS] of hashed character trigram counts of the prompts."""
    vectors = torch.zeros(len(items), _BUCKETS)
    for row, item in enumerate(items):
        text = render(item.messages)
        buckets = torch.tensor([crc32(text[i : i + 3].encode()) % _BUCKETS for i in range(len(text) - 2)])
        vectors[row] = torch.bincount(buckets, minlength=_BUCKETS)
    return torch.nn.functional.normalize(vectors)
