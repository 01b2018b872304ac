"""The flat batch of one step, laid out from the plan: decode rows, longest first, then chunks in the plan's order.

Owns what stays the same while the same rows decode, so that such a step only counts on. Called by the runner; knows no model, and of the
device only that the rows lie there.
"""

from dataclasses import dataclass

import numpy as np
import torch

from pagoda_worker.execution.rows import Layout, RowInputs, Rows
from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.sampling.constraints import RowMasks
from pagoda_worker.sampling.row_masks import BatchMasks
from pagoda_worker.sampling.row_tables import IntArray
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class StepBatch:
    plan_positions: IntArray
    """Of each sampling row, where the plan has it."""
    sampled_rows: IntArray
    lengths: IntArray
    """Of the sequences that sample, as `sampled_rows`."""
    all_sample: bool
    """The hidden states of the step are those to sample from, in their order."""
    there: RowInputs
    attention: AttentionBatch
    token_rows: IntArray
    """[T] of all tokens."""


@dataclass(slots=True)
class _Decodes:
    """Of one step, in the plan's order; the arrays in that of the batch."""

    sequences: list[Sequence]
    lengths: list[int]
    order: IntArray
    """Positions in the plan."""
    sorted_rows: IntArray
    at: IntArray
    """The position that each row computes."""
    starts: IntArray
    """[rows + 1], counting from 0."""


class StepBatches:
    def __init__(self, rows: Rows, *, block_size: int, kv_heads: int, dtype: torch.dtype) -> None:
        self._rows = rows
        self._block_size = block_size
        self._kv_heads = kv_heads
        self._dtype = dtype
        self._last: _Decodes | None = None

    def lay_out(self, plan: StepPlan) -> StepBatch:
        decodes = self._places(plan) if plan.verifications else self._decodes(plan)
        order, count = decodes.order, len(decodes.at)
        if plan.chunks:
            step = _with_chunks(plan, decodes.sorted_rows, decodes.at, self._block_size)
            singles = len(plan.decodes)
            parting = len(step.sampled_rows) - count
            # The plan has those that verify after everyone else.
            order = np.concatenate([np.where(order < singles, order, order + parting), np.arange(singles, singles + parting)])
        else:
            step = _decodes_alone(decodes, self._block_size)
        there = self._rows.lay_out(step)
        attention = AttentionBatch(
            slots=there.slots,
            query_starts=there.query_starts,
            context_lens=there.context_lens,
            block_table=there.block_table,
            block_size=self._block_size,
            kv_heads=self._kv_heads,
            dtype=self._dtype,
            decode_lens=step.contexts[:count].tolist(),
            chunks=[(chunk.count, chunk.start) for chunk in plan.chunks],
        )
        return StepBatch(order, step.sampled_rows, step.lengths, not plan.chunks, there, attention, step.rows)

    def _decodes(self, plan: StepPlan) -> _Decodes:
        """Where everyone is one token on since the last time, in its row, so is the whole: same order, same arrays but one."""
        last, lengths = self._last, [sequence.computed for sequence in plan.decodes]
        stays = last is not None and plan.decodes == last.sequences and not plan.opened
        if last is not None and stays and lengths == [length + 1 for length in last.lengths]:
            last.lengths, last.at = lengths, last.at + 1
            return last
        at = np.array(lengths, np.int64) - 1
        order = np.argsort(-at, kind="stable")
        rows = np.array([sequence.row for sequence in plan.decodes], np.int64)
        self._last = _Decodes(plan.decodes, lengths, order, rows[order], at[order], np.arange(len(rows) + 1))
        return self._last

    def _places(self, plan: StepPlan) -> _Decodes:
        """Each place of a verification is a row that decodes, with the row's block table and the length up to there: so it takes the same
        kernels, and the same sums, as a step of its own."""
        self._last = None
        rows, at = places(plan)
        order = np.argsort(-at, kind="stable")
        return _Decodes(plan.decodes, [], order, rows[order], at[order], np.arange(len(rows) + 1))


def masks_of_batch(masks: RowMasks, plan_positions: IntArray) -> BatchMasks:
    """`plan_positions`: of each sampling row of the batch, where the plan has it."""
    batch_of_plan = np.empty_like(plan_positions)
    batch_of_plan[plan_positions] = np.arange(len(batch_of_plan))
    return BatchMasks(batch_of_plan[masks.positions], torch.from_numpy(masks.bits))


def places(plan: StepPlan) -> tuple[IntArray, IntArray]:
    """(row, position) of everything that decodes: one of each sequence, then those of verifications."""
    rows = [sequence.row for sequence in plan.decodes]
    at = [sequence.computed - 1 for sequence in plan.decodes]
    for each in plan.verifications:
        rows += [each.sequence.row] * each.places
        at += range(each.start, each.start + each.places)
    return np.array(rows, np.int64), np.array(at, np.int64)


def _decodes_alone(decodes: _Decodes, block_size: int) -> Layout:
    """The common case, with a third of the array operations."""
    contexts = decodes.at + 1
    return Layout(
        rows=decodes.sorted_rows,
        positions=decodes.at,
        sequence_rows=decodes.sorted_rows,
        contexts=contexts,
        query_starts=decodes.starts,
        sampled_at=decodes.starts[:-1],
        sampled_rows=decodes.sorted_rows,
        lengths=contexts,
        block_size=block_size,
    )


def _with_chunks(plan: StepPlan, rows: IntArray, at: IntArray, block_size: int) -> Layout:
    chunks, decodes = plan.chunks, len(rows)
    positions = np.concatenate([at, *(np.arange(chunk.start, chunk.start + chunk.count) for chunk in chunks)])
    ends = decodes - 1 + np.cumsum([chunk.count for chunk in chunks], dtype=np.int64)
    owners = [(end, sequence.row) for end, chunk in zip(ends.tolist(), chunks, strict=True) for sequence in chunk.sequences]
    sampled_at = np.concatenate([np.arange(decodes), np.array([end for end, _ in owners], np.int64)])
    return Layout(
        rows=np.concatenate([rows, *(np.full(chunk.count, chunk.sequence.row) for chunk in chunks)]),
        positions=positions,
        sequence_rows=np.concatenate([rows, np.array([chunk.sequence.row for chunk in chunks], np.int64)]),
        contexts=np.concatenate([at + 1, np.array([chunk.start + chunk.count for chunk in chunks], np.int64)]),
        query_starts=np.concatenate([np.arange(decodes + 1), ends + 1]),
        sampled_at=sampled_at,
        sampled_rows=np.concatenate([rows, np.array([row for _, row in owners], np.int64)]),
        lengths=positions[sampled_at] + 1,
        block_size=block_size,
    )
