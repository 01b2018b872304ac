"""Runs one planned step on the device: rows, cache, one forward pass, one token per sampling row.

Owns the model, the KV cache and the state of running rows (token ids, block tables, sampling settings). Knows nothing of queues,
priorities or endings; called by the engine. `launch` hands a step to the device and returns; `InFlight.result` waits for its tokens.

The host knows how long each row is, never what its newest token is: ids are read from the rows' table on the device, where the sampler's
answer is written without a detour. So a step can be launched while the one before still runs. Steps run in the order of their launches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.execution.adapters import DeviceAdapters
from pagoda_worker.execution.decode_graphs import DecodeGraphs
from pagoda_worker.execution.drafter import Drafter
from pagoda_worker.execution.embeddings import embed
from pagoda_worker.execution.graph_ladder import padded_size
from pagoda_worker.execution.host_memory import HostMemory
from pagoda_worker.execution.native_steps import native_step
from pagoda_worker.execution.prompt_logprobs import PromptLogprobsCollector
from pagoda_worker.execution.rows import rows_on
from pagoda_worker.execution.step_batches import StepBatch, StepBatches, masks_of_batch, places
from pagoda_worker.layers.kv_cache import blocks_of, new_cache
from pagoda_worker.loading.peft import AdapterWeights
from pagoda_worker.models.base import ForwardPass, Model
from pagoda_worker.models.native_llama import native_llama
from pagoda_worker.request import TokenLogprobs
from pagoda_worker.sampling.constraints import RowMasks
from pagoda_worker.sampling.row_tables import History, IntArray, to_device
from pagoda_worker.sampling.sampler import BROKEN, Logprobs, Sampler
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled
from pagoda_worker.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerShape:
    max_running: int
    max_model_len: int
    block_size: int
    block_count: int
    host_slots: int = 0
    """Blocks that host memory holds beside them."""
    eos_token_ids: tuple[int, ...]
    adapter_slots: int = 0
    max_adapter_rank: int = 0


class Runner:
    def __init__(
        self,
        model: ForwardPass,
        shape: RunnerShape,
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
        masks: Callable[[list[Sequence]], RowMasks | None] = lambda samplers: None,
        draft: ForwardPass | None = None,
        changes: Callable[[StepPlan], None] = lambda plan: None,
    ) -> None:
        """`kv_dtype`: of what the cache holds. `draft` guesses tokens for the plans that ask for it. `masks`: what the sampling sequences,
        in the plan's order, may sample; asked while the device computes. `changes`: hears of what a plan does to blocks before it is
        done."""
        self.model = model
        self.shape = shape
        self.device = device
        self.dtype = dtype
        cache = model.cache_shape
        sizes = {"kv_heads": cache.kv_heads, "dim": cache.head_dim, "blocks": shape.block_count, "block_size": shape.block_size}
        self.caches = [new_cache(**sizes, dtype=kv_dtype, device=device) for _ in range(cache.layers)]
        self.host = HostMemory(self._pages(), shape.host_slots, model.operators.copy_blocks) if shape.host_slots else None
        self.rows = rows_on(device, rows=shape.max_running, columns=shape.max_model_len, block_size=shape.block_size)
        self._batches = StepBatches(self.rows, block_size=shape.block_size, kv_heads=cache.kv_heads, dtype=dtype)
        self.adapters: DeviceAdapters | None = None
        if shape.adapter_slots:
            sizes = {"slots": shape.adapter_slots, "max_rank": shape.max_adapter_rank, "rows": shape.max_running + 1}
            self.adapters = DeviceAdapters(cast(Model, model), **sizes, dtype=dtype, device=device)
        self.graphs: DecodeGraphs | None = None
        self._output_start = np.zeros(shape.max_running, np.int64)
        self._history = History(self.rows.tokens, self._output_start)
        self.native = native_llama(model, self.caches, self.rows.tokens, self.rows.tables, shape.block_size)
        """Steps by one call; None: operation by operation."""
        self._masks = masks
        self._changes = changes
        self.prompt_logprobs = PromptLogprobsCollector(vocab_size=model.vocab_size)
        self.sampler = Sampler(max_running=shape.max_running, vocab_size=model.vocab_size, device=device, choose=model.operators.choose)
        self.drafter = (
            None
            if draft is None
            else Drafter(draft, self.rows, self.sampler, self._history, blocks=shape.block_count, block_size=shape.block_size, dtype=dtype)
        )
        self._copies_back = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> "InFlight":
        """The whole step. The plan must not be empty. Launched again after it raised, the same plan does the same: what it changes first
        does not depend on what was computed."""
        self.apply_changes(plan)
        if self.drafter is not None:
            self.drafter.run(plan)
        if self.graphs is not None and (size := padded_size(plan, self.graphs.sizes)) is not None:
            rows, at = places(plan)
            logits, ids = self.graphs.run(rows, at, size)
            return self._sampled(plan, logits, ids, rows, at + 1, np.arange(len(rows)))
        if self.native is not None and not self._wants_hidden_states(plan) and (self.native.adapts or not self._adapted(plan)):
            step = native_step(plan)
            logits, ids = self.native.step(step.places, step.chunks, step.samplers, self._slots(step.token_rows))
            return self._sampled(plan, logits, ids, step.samplers[1], step.samplers[2], step.plan_positions)
        batch = self._batches.lay_out(plan)
        if self.adapters is not None:
            self.adapters.begin_step(batch.token_rows)
        hidden = self.model.forward(batch.there.ids, batch.there.positions, self.caches, batch.attention)
        told = Sampled([])
        if plan.chunks:
            self.prompt_logprobs.collect(plan, hidden, self.model.logits)
            embed(plan, hidden, told)
        if not len(batch.sampled_rows):
            return InFlight(self, batch.sampled_rows, batch.plan_positions, None, None, told)
        logits = self.model.logits(hidden if batch.all_sample else hidden.index_select(0, batch.there.sampled_at))
        ids, logprobs = self._sample(plan, logits, batch, told)
        batch.there.keep(ids)
        return InFlight(self, batch.sampled_rows, batch.plan_positions, ids, logprobs, told)

    def _sample(self, plan: StepPlan, logits: Tensor, batch: StepBatch, told: Sampled) -> tuple[Tensor, Logprobs | None]:
        samplers = plan.sampling()
        masks = self._masks(samplers)
        batch_masks = None if masks is None else masks_of_batch(masks, batch.plan_positions)
        if masks is not None:
            told.stuck = masks.stuck
        self.prompt_logprobs.deliver(samplers, told)
        return self.sampler.sample(logits, batch.sampled_rows, batch.lengths, self._history, batch_masks)

    def _wants_hidden_states(self, plan: StepPlan) -> bool:
        """More is wanted of a chunk than what is sampled behind it."""
        return self.prompt_logprobs.listens(plan) or any(chunk.embeds for chunk in plan.chunks)

    def _slots(self, rows: IntArray) -> Tensor | None:
        """Adapters of tokens of `rows`, for this step."""
        if self.adapters is None:
            return None
        self.adapters.begin_step(rows)
        return self.adapters.slots

    def _adapted(self, plan: StepPlan) -> bool:
        if self.adapters is None:
            return False
        rows = [each.row for each in plan.sampling()] + [chunk.sequence.row for chunk in plan.chunks]
        return self.adapters.any_in(np.array(rows, np.int64))

    def _sampled(
        self, plan: StepPlan, logits: Tensor, ids: Tensor, rows: IntArray, lengths: IntArray, plan_positions: IntArray
    ) -> "InFlight":
        """Of a step by one call, which told logits and the likeliest ids of `rows` and wrote those behind their places. Rows that are not
        greedy, or want logprobs or a mask, are sampled from the logits as in any other step."""
        samplers = plan.sampling()
        logprobs, told, masks = None, Sampled([]), self._masks(samplers)
        self.prompt_logprobs.deliver(samplers, told)
        if len(rows) and (masks is not None or not self.sampler.greedy_alone(rows)):
            self._put_drafts(plan, guessed=True)  # ids were written over them
            batch_masks = None if masks is None else masks_of_batch(masks, plan_positions)
            ids, logprobs = self.sampler.sample(logits, rows, lengths, self._history, batch_masks)
            self.rows.keep(rows, lengths, ids)
        if masks is not None:
            told.stuck = masks.stuck
        return InFlight(self, rows, plan_positions, ids if len(rows) else None, logprobs, told)

    def apply_changes(self, plan: StepPlan) -> None:
        """What comes before the step's computing."""
        self._changes(plan)
        if plan.swap_out and self.host:
            self.host.copy_out(plan.swap_out)
            plan.swap_out = []
        if plan.scrubs:
            self._pages_of_all(lambda pages: pages.index_fill_(1, self._index(plan.scrubs), 0))
            for pages in self.drafter.pages() if self.drafter else []:
                pages.index_fill_(1, self._index(plan.scrubs), 0)
        if plan.copies:
            self._copy_blocks(*zip(*plan.copies, strict=True))
        if plan.swap_in and self.host:
            self.host.copy_in(plan.swap_in)
        if plan.added_blocks:
            self.rows.add_blocks(plan.added_blocks)
        for slot, adapter in plan.adapters:
            assert self.adapters is not None
            self.adapters.place(slot, cast(AdapterWeights, adapter.weights))
        for sequence in plan.opened:
            self._open_row(sequence)
        self._put_drafts(plan)

    def _put_drafts(self, plan: StepPlan, *, guessed: bool = False) -> None:
        """`guessed`: those of the draft model too, which writes its own."""
        verified = [each for each in plan.verifications if guessed or each.draft_from is None]
        if drafts := [(v.sequence.row, v.start + i, draft) for v in verified for i, draft in enumerate(v.drafts, start=1)]:
            self.rows.put(*np.array(drafts, np.int64).T)

    def _copy_blocks(self, sources: tuple[int, ...], targets: tuple[int, ...]) -> None:
        source, target = self._index(list(sources)), self._index(list(targets))
        copy = self.model.operators.copy_blocks
        if copy is not None and set(sources).isdisjoint(targets):
            self._pages_of_all(lambda pages: copy(pages, pages, source, target))
        else:  # a block freed by one copy may be written by another: all are read first
            self._pages_of_all(lambda pages: pages.index_copy_(1, target, pages.index_select(1, source)))

    def _pages_of_all(self, change: Callable[[Tensor], object]) -> None:
        for pages in self._pages():
            change(pages)

    def _pages(self) -> list[Tensor]:
        """Of each layer [2 x kv heads, blocks, whatever a block is]."""
        return [blocks_of(cache, self.shape.block_count) for cache in self.caches]

    def _index(self, values: list[int]) -> Tensor:
        return to_device(np.array(values, np.int64), self.device)

    def _open_row(self, sequence: Sequence) -> None:
        row = sequence.row
        self.rows.open(row, sequence.tokens, sequence.blocks)
        if self.adapters is not None:
            self.adapters.open_row(row, sequence.adapter_slot)
        self._output_start[row] = sequence.output_start
        self.sampler.open_row(row, sequence.request, sequence.seed, self.shape.eos_token_ids)


class InFlight:
    """A step that was launched. On CUDA its answer comes back on a stream of its own, behind an event, so that the next step's kernels do
    not wait for it."""

    def __init__(
        self,
        runner: Runner,
        rows: IntArray,
        plan_positions: IntArray,
        ids: Tensor | None,
        logprobs: Logprobs | None,
        told: Sampled,
    ) -> None:
        """`ids` of `rows`, which stand at `plan_positions` among those that the plan samples."""
        self._told = told
        """What the host knew of the answer at the launch already."""
        self._plan_positions = plan_positions
        self._top_logprobs = runner.sampler.top_logprobs[rows].copy()  # rows may have other owners when it is read
        self._logprobs = logprobs
        self._event: torch.cuda.Event | None = None
        tensors = [] if ids is None else [ids] if logprobs is None else [ids, logprobs.sampled, logprobs.top_ids, logprobs.top]
        self._answers = tensors
        if tensors and runner._copies_back is not None:
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            runner._copies_back.wait_stream(torch.cuda.current_stream(runner.device))
            with torch.cuda.stream(runner._copies_back):
                self._answers = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True) for t in tensors]
                self._event.record()
            for tensor in tensors:
                tensor.record_stream(runner._copies_back)

    def result(self) -> Sampled:
        """Waits for the device."""
        if not self._answers:
            return self._told
        if self._event is not None:
            self._event.synchronize()
        host = self._answers[0].numpy()
        # The runner computed decode rows by length; the answer goes out in the plan's order.
        answer = np.empty_like(host)
        answer[self._plan_positions] = host
        sampled = self._told
        sampled.token_ids = answer.tolist()
        if BROKEN in sampled.token_ids:
            sampled.broken = {position for position, token in enumerate(sampled.token_ids) if token == BROKEN}
        if self._logprobs is not None:
            self._add_logprobs(sampled, self._logprobs.positions, *(each.tolist() for each in self._answers[1:]))
        return sampled

    def _add_logprobs(self, sampled: Sampled, at: IntArray, own: list[float], top_ids: list[list[int]], top: list[list[float]]) -> None:
        positions, asked = self._plan_positions[at].tolist(), self._top_logprobs[at].tolist()
        for position, k, each, ids, values in zip(positions, asked, own, top_ids, top, strict=True):
            sampled.logprobs[position] = TokenLogprobs(each, list(zip(ids[:k], values[:k], strict=True)))
