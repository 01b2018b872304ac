"""Runs one planned step on the device: rows, cache, one forward pass, one token per sampling row.

Owns the model, the KV cache and the state of running rows (token ids, block tables, sampling settings). Knows nothing of queues,
priorities or endings; called by the engine. Inputs are laid out with numpy in one buffer and copied once; sampled ids come back in one
copy.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.constraints import RowMasks
from pagoda_worker.embeddings import embed
from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.models.base import Model
from pagoda_worker.plan import Sampled, Sequence, StepPlan
from pagoda_worker.prompt_logprobs import PromptLogprobsCollector
from pagoda_worker.request import TokenLogprobs
from pagoda_worker.row_masks import BatchMasks
from pagoda_worker.sampler import BROKEN, History, IntArray, Logprobs, Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerShape:
    max_running: int
    max_model_len: int
    block_size: int
    block_count: int
    eos_token_ids: tuple[int, ...]


class Runner:
    def __init__(
        self,
        model: Model,
        shape: RunnerShape,
        *,
        dtype: torch.dtype,
        device: torch.device,
        masks: Callable[[list[Sequence]], RowMasks | None] = lambda samplers: None,
    ) -> None:
        """`masks`: what the sampling sequences, in the plan's order, may sample; asked while the device computes."""
        self.model = model
        self.shape = shape
        self.device = device
        self.dtype = dtype
        cache = model.cache_shape
        slots = shape.block_count * shape.block_size
        self.caches = [zeros((2, cache.kv_heads, slots, cache.head_dim), dtype, device) for _ in range(cache.layers)]
        """Zeros, not empty: what lies past a row's end is multiplied by 0, which only helps when it is finite."""
        self._tokens = np.zeros((shape.max_running, shape.max_model_len), np.int32)
        self._tables = np.zeros((shape.max_running, -(-shape.max_model_len // shape.block_size)), np.int64)
        self._output_start = np.zeros(shape.max_running, np.int64)
        self._history = History(self._tokens, self._output_start)
        self._masks = masks
        self._prompt_logprobs = PromptLogprobsCollector(vocab_size=model.vocab_size)
        self.sampler = Sampler(max_running=shape.max_running, vocab_size=model.vocab_size, device=device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Sampled:
        """The whole step. The plan must not be empty."""
        self._apply_changes(plan)
        inputs = _Inputs(plan, self)
        hidden = self.model.forward(inputs.ids, inputs.positions, self.caches, inputs.batch)
        self._prompt_logprobs.collect(plan, hidden, self.model.logits)
        sampled = self._sample(plan, hidden, inputs) if len(inputs.sampled_rows) else Sampled([])
        embed(plan, hidden, sampled)
        return sampled

    def _sample(self, plan: StepPlan, hidden: Tensor, inputs: "_Inputs") -> Sampled:
        logits = self.model.logits(hidden.index_select(0, inputs.sampled_at))
        samplers = plan.sampling()
        masks = self._masks(samplers)
        batch_masks = None if masks is None else inputs.in_batch(masks)
        ids, logprobs = self.sampler.sample(logits, inputs.sampled_rows, inputs.lengths, self._history, batch_masks)
        sampled = self._to_host(ids, logprobs, inputs)
        if masks is not None:
            sampled.stuck = masks.stuck
        self._prompt_logprobs.deliver(samplers, sampled)
        return sampled

    def _apply_changes(self, plan: StepPlan) -> None:
        if plan.scrubs:
            self._pages_of_all(lambda pages: pages.index_fill_(1, self._index(plan.scrubs), 0))
        if plan.copies:
            source, target = (self._index(list(blocks)) for blocks in zip(*plan.copies, strict=True))
            self._pages_of_all(lambda pages: pages.index_copy_(1, target, pages.index_select(1, source)))
        for row, at, block in plan.added_blocks:
            self._tables[row, at] = block
        for sequence in plan.opened:
            self._open_row(sequence)

    def _pages_of_all(self, change: Callable[[Tensor], object]) -> None:
        for cache in self.caches:
            change(cache.view(2 * cache.shape[1], self.shape.block_count, -1))

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _open_row(self, sequence: Sequence) -> None:
        row = sequence.row
        self._tokens[row, : len(sequence.tokens)] = sequence.tokens
        self._tables[row, : len(sequence.blocks)] = sequence.blocks
        self._output_start[row] = sequence.output_start
        self.sampler.open_row(row, sequence.request, sequence.seed, self.shape.eos_token_ids)

    def _to_host(self, ids: Tensor, logprobs: Logprobs | None, inputs: "_Inputs") -> Sampled:
        host = ids.cpu().numpy()
        room = inputs.lengths < self.shape.max_model_len
        self._tokens[inputs.sampled_rows[room], inputs.lengths[room]] = host[room]
        # The runner computed decode rows by length; the answer goes out in the plan's order.
        answer = np.empty_like(host)
        answer[inputs.plan_positions] = host
        sampled = Sampled(answer.tolist(), broken=set(np.flatnonzero(answer == BROKEN).tolist()))
        if logprobs is not None:
            self._add_logprobs(sampled, logprobs, inputs)
        return sampled

    def _add_logprobs(self, sampled: Sampled, logprobs: Logprobs, inputs: "_Inputs") -> None:
        columns = zip(
            inputs.plan_positions[logprobs.positions].tolist(),
            self.sampler.top_logprobs[inputs.sampled_rows[logprobs.positions]].tolist(),
            logprobs.sampled.tolist(),
            logprobs.top_ids.tolist(),
            logprobs.top.tolist(),
            strict=True,
        )
        for position, k, own, top_ids, top in columns:
            sampled.logprobs[position] = TokenLogprobs(own, list(zip(top_ids[:k], top[:k], strict=True)))


class _Inputs:
    """The flat batch of one step: decode rows, longest first, then chunks in the plan's order."""

    def __init__(self, plan: StepPlan, runner: Runner) -> None:
        size = runner.shape.block_size
        rows = np.array([sequence.row for sequence in plan.decodes], np.int64)
        at = np.array([sequence.computed - 1 for sequence in plan.decodes], np.int64)
        order = np.argsort(-at, kind="stable")
        rows, at = rows[order], at[order]
        decodes = len(rows)

        flat_rows = np.concatenate([rows, *(np.full(chunk.count, chunk.sequence.row) for chunk in plan.chunks)])
        positions = np.concatenate([at, *(np.arange(chunk.start, chunk.start + chunk.count) for chunk in plan.chunks)])
        ids = runner._tokens[flat_rows, positions]
        slots = runner._tables[flat_rows, positions // size] * size + positions % size

        ends = decodes - 1 + np.cumsum([chunk.count for chunk in plan.chunks], dtype=np.int64)
        owners = [(end, sequence.row) for end, chunk in zip(ends.tolist(), plan.chunks, strict=True) for sequence in chunk.sequences]
        self.sampled_rows = np.concatenate([rows, np.array([row for _, row in owners], np.int64)])
        sampled_at = np.concatenate([np.arange(decodes), np.array([end for end, _ in owners], np.int64)])
        self.lengths = positions[sampled_at] + 1
        self.plan_positions = np.concatenate([order, np.arange(decodes, len(sampled_at))])

        counts = [chunk.count for chunk in plan.chunks]
        contexts = np.concatenate([at + 1, np.array([chunk.start + chunk.count for chunk in plan.chunks], np.int64)])
        sequence_rows = np.concatenate([rows, np.array([chunk.sequence.row for chunk in plan.chunks], np.int64)])
        pages = -(-int(contexts.max()) // size)
        table = runner._tables[sequence_rows, :pages]
        query_starts = np.concatenate([np.arange(decodes + 1), ends + 1])
        parts = [ids.astype(np.int64), positions, slots, sampled_at]
        narrow = [query_starts, contexts, table.ravel()]
        self.ids, self.positions, slots_there, self.sampled_at = _send(parts, np.int64, runner.device)
        starts_there, contexts_there, table_there = _send(narrow, np.int32, runner.device)
        self.batch = AttentionBatch(
            slots=slots_there,
            query_starts=starts_there,
            context_lens=contexts_there,
            block_table=table_there.view(-1, pages),
            block_size=size,
            kv_heads=runner.model.cache_shape.kv_heads,
            dtype=runner.dtype,
            decode_lens=contexts[:decodes].tolist(),
            chunks=[(count, chunk.start) for count, chunk in zip(counts, plan.chunks, strict=True)],
        )

    def in_batch(self, masks: RowMasks) -> BatchMasks:
        """The batch has decode rows longest first, the plan does not."""
        batch_of_plan = np.empty_like(self.plan_positions)
        batch_of_plan[self.plan_positions] = np.arange(len(batch_of_plan))
        return BatchMasks(batch_of_plan[masks.positions], torch.from_numpy(masks.bits))


def _send(parts: list[IntArray], dtype: type[np.int64 | np.int32], device: torch.device) -> tuple[Tensor, ...]:
    """One copy for all."""
    there = torch.from_numpy(np.concatenate(parts).astype(dtype, copy=False)).to(device, non_blocking=True)
    return torch.split(there, [len(part) for part in parts])


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPU from calloc, so that memory is taken page by page as it is written; torch.zeros would write all of it at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
