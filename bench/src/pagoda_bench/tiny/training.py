"""Owns the training loop: batches from the endless corpus, the loss on the assistant's tokens, the schedule, checkpoints.

One model at a time, on the CPU, over float32 weights: in bfloat16 autocast, or in float32 where the CPU would only emulate that.
Stopping it at any time loses at most the steps since the last checkpoint; starting it again continues.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from pagoda_bench.tiny import corpus
from pagoda_bench.tiny import tokenizer as tok
from pagoda_bench.tiny.models import new_model

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one training run does; two equal plans on one machine give the same model."""

    model: str
    steps: int
    learning_rate: float = 3e-3
    """Peak, for both optimizers. Warmed up, held, then decayed linearly to zero: exact match rises most while it decays."""
    warmup_steps: int = 100
    decay_share: float = 0.6
    """Last part of the steps over which the rate decays. Before it, a resumed run may change `steps` without a jump in the rate."""
    batch_tokens: int = 2048
    """Tokens of one forward pass, padding included."""
    passes: int = 2
    """Forward passes per step, one thread each. Each holds conversations of one length, so two or more mix the tasks within a step."""
    muon: bool = True
    """Muon for the matrices inside the layers; otherwise AdamW for everything, at a rate of its own: for few steps of large matrices."""
    weight_decay: float = 0.05
    autocast: bool = True
    """Multiply in bfloat16: a third of the time on a CPU with AMX, four times as long on one with AVX-512 alone."""
    seed: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(corpus.DEFAULT_MIX))
    log_every: int = 25
    checkpoint_every: int = 250
    """A multiple of log_every, so that the seconds in a checkpoint are whole."""


def learning_rate(plan: Plan, step: int) -> float:
    """The rate of step 0 ≤ `step` < plan.steps."""
    return plan.learning_rate * min(1.0, (step + 1) / plan.warmup_steps, (plan.steps - step) / (plan.decay_share * plan.steps))


def batches(tokenizer: Tokenizer, plan: Plan, part: str) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless stream of (ids [B, T], mask [B, T]), padded on the right; mask is True where the assistant must produce the token.

    T is a multiple of 8 and B follows from it, so a run meets a few dozen shapes in all: the CPU library compiles kernels per shape.
    `part` names the stream, so that a resumed run does not see the first run's conversations again.
    """
    rng = Random(f"{plan.model} {plan.seed} {part}")
    conversations = corpus.training_conversations(plan.mix, rng)
    by_width: dict[int, list[list[int]]] = {}
    while True:
        full: list[tuple[int, list[list[int]]]] = []
        for encoding in tokenizer.encode_batch([tok.render(next(conversations)) for _ in range(2048)]):
            width = -(-len(encoding.ids) // 8) * 8
            rows = by_width.setdefault(width, [])
            rows.append(encoding.ids)
            if len(rows) == max(1, plan.batch_tokens // width):
                full.append((width, by_width.pop(width)))
        rng.shuffle(full)
        for width, rows in full:
            ids = torch.tensor([row + [tok.PAD_ID] * (width - len(row)) for row in rows])
            mask = torch.tensor([tok.answer_mask(row) + [False] * (width - len(row)) for row in rows])
            yield ids, mask


def answer_loss(model: LlamaForCausalLM, ids: Tensor, mask: Tensor, *, autocast: bool = True) -> Tensor:
    """Sum of the cross entropies of the masked tokens, each predicted from the position before it. Logits exist only there.

    NOTE: no attention mask is needed: padding is on the right, so a causal model never sees it from a real position.
    """
    predicts = mask[:, 1:].flatten().nonzero().flatten()
    labels = ids[:, 1:].flatten()[predicts]
    spare = -len(predicts) % 128  # again for few shapes
    predicts, labels = functional.pad(predicts, (0, spare)), functional.pad(labels, (0, spare), value=_IGNORED)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        logits = model.lm_head(hidden[predicts])
    return functional.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=_IGNORED)


class Replicas:
    """Computes one step's gradients, one single-threaded replica per pass: a third faster than two threads inside every small operator.

    The replicas share the model's weights and own their gradients, so the threads never write the same memory.
    """

    def __init__(self, model: LlamaForCausalLM, count: int, *, autocast: bool) -> None:
        self._model, self._autocast = model, autocast
        self._all = [model, *(deepcopy(model) for _ in range(count - 1))]
        for replica in self._all[1:]:
            for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
                own.data = shared.data
        self._threads = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, parts: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Leaves the gradient of the mean loss per answer token of all parts in the model's `.grad`; returns that loss."""
        answered = sum(int(mask[:, 1:].sum()) for _, mask in parts)

        def one(replica: LlamaForCausalLM, part: tuple[Tensor, Tensor]) -> float:
            loss = answer_loss(replica, *part, autocast=self._autocast) / answered
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.item()

        losses = list(self._threads.map(one, self._all, parts))
        for replica in self._all[1:]:
            for own, shared in zip(replica.parameters(), self._model.parameters(), strict=True):
                assert own.grad is not None
                assert shared.grad is not None
                shared.grad += own.grad
            replica.zero_grad()
        return sum(losses)


class Optimizers:
    """Muon for the matrices inside the layers where the plan says so, AdamW for embeddings and norms; one rate drives both."""

    def __init__(self, model: LlamaForCausalLM, plan: Plan) -> None:
        inner = [p for p in model.model.layers.parameters() if p.ndim == 2 and plan.muon]
        chosen = {id(p) for p in inner}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]
        if inner:
            muon = torch.optim.Muon(inner, lr=plan.learning_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw")
            self._all.insert(0, muon)

    def step(self, rate: float) -> None:
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[dict[str, object]]:
        return [optimizer.state_dict() for optimizer in self._all]

    def load(self, states: list[dict[str, object]]) -> None:
        for optimizer, state in zip(self._all, states, strict=True):
            optimizer.load_state_dict(state)


def train(
    plan: Plan,
    tokenizer: Tokenizer,
    checkpoint: Path,
    log: Callable[[str], None],
    at_checkpoint: Callable[[int, LlamaForCausalLM], None],
) -> LlamaForCausalLM:
    """Trains up to `plan.steps`, from `checkpoint` where it exists. `at_checkpoint` gets the step and the model, in eval mode."""
    model = new_model(plan.model, plan.seed)
    model.set_attn_implementation("eager")  # 20 % faster than sdpa here: its CPU backward is slow on short rows
    optimizers = Optimizers(model, plan)
    first, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizers.load(saved["optimizers"])
        first, seconds = saved["step"], saved["seconds"]
        log(f"continue {plan.model} at step {first} of {plan.steps}")
    stream = batches(tokenizer, plan, part=f"from {first}")
    model.train()
    replicas = Replicas(model, plan.passes, autocast=plan.autocast)
    last, since, tokens, losses = time.monotonic(), first, 0, 0.0
    for step in range(first, plan.steps):
        parts = [next(stream) for _ in range(plan.passes)]
        losses += replicas.backward(parts)
        tokens += sum(ids.numel() for ids, _ in parts)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(learning_rate(plan, step))
        done = step + 1
        if done % plan.log_every == 0:
            took = time.monotonic() - last
            log(f"{plan.model} {done}/{plan.steps} loss {losses / (done - since):.4f} {tokens / took:.0f} tokens/s {seconds + took:.0f} s")
            seconds += took
            last, since, tokens, losses = time.monotonic(), done, 0, 0.0
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            _save(
                checkpoint,
                {"model": model.state_dict(), "optimizers": optimizers.state(), "step": done, "seconds": seconds, "plan": asdict(plan)},
            )
            model.eval()
            at_checkpoint(done, model)
            model.train()
            last = time.monotonic()
    return model.eval()


def _save(path: Path, content: dict[str, object]) -> None:
    """By rename, so that a run killed while saving still continues from the checkpoint before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    torch.save(content, fresh)
    fresh.rename(path)
