"""Owns batched greedy decoding of many conversations with transformers, the reference that evaluation scores."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from pagoda_bench.tiny import tokenizer as tok
from pagoda_bench.tiny.items import Message

MAX_NEW_TOKENS = 160
"""More than any reference answer has; a reply that does not end by then is wrong anyway."""


@torch.inference_mode()
def greedy_ids(model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], batch_size: int = 128) -> list[list[int]]:
    """The tokens after each prompt, its end of turn included, in the given order.

    Batches hold prompts of similar length, padded on the left.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[tok.PAD_ID] * (width - len(prompts[i])) + [*prompts[i]] for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=tok.END_ID,
            pad_token_id=tok.PAD_ID,
        )
        for i, reply in zip(rows, output[:, width:].tolist(), strict=True):
            replies[i] = reply[: reply.index(tok.END_ID) + 1] if tok.END_ID in reply else reply
    return replies


def prompt_ids(tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
    """Each conversation's ids, up to and with the token that opens the assistant's turn."""
    return [tokenizer.encode(tok.render(messages, add_generation_prompt=True)).ids for messages in conversations]


def greedy_replies(model: LlamaForCausalLM, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """The model's reply to each conversation, in the given order."""
    return [tokenizer.decode(reply) for reply in greedy_ids(model, prompt_ids(tokenizer, conversations))]
