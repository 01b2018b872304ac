"""A small model that guesses the next tokens of the rows that verify some in this step, before the large one computes it.

Owns the draft model and its KV cache: pages of its own under the same block numbers, so that one block table serves both and the scheduler
knows of one pool. Called by the runner; what the model has computed of each row is planned by speculation/draft_model.py.

A draft is sampled with the row's own settings and the noise of its own position, as the large model will sample there: the closer the two
models, the oftener they choose the same token, at any temperature (docs/speculation.md). On a CPU greedy rows are guessed for by one native
call, which also says how sure the model is: guesses that are not worth their place in the step are left out of it.
"""

import time

import numpy as np
import torch
from torch import Tensor

from pagoda_worker.execution.native_steps import read_alone
from pagoda_worker.execution.rows import Layout, Rows
from pagoda_worker.execution.step_batches import StepBatch, StepBatches
from pagoda_worker.layers.attention import AttentionBatch
from pagoda_worker.layers.kv_cache import blocks_of, new_cache
from pagoda_worker.models.base import ForwardPass
from pagoda_worker.models.native_drafting import NativeDrafting, native_drafting
from pagoda_worker.sampling.row_tables import History, IntArray
from pagoda_worker.sampling.sampler import Sampler
from pagoda_worker.scheduling.plan import Chunk, StepPlan
from pagoda_worker.scheduling.verification import Verification

FEW = 4
"""Tokens to catch up with that are computed as rows that decode; more are a chunk."""


class Drafter:
    def __init__(
        self, model: ForwardPass, rows: Rows, sampler: Sampler, history: History, *, blocks: int, block_size: int, dtype: torch.dtype
    ):
        cache = model.cache_shape
        self._model = model
        self._rows = rows
        self._sampler = sampler
        self._history = history
        self._block_size = block_size
        self._blocks = blocks
        self._dtype = dtype
        device = rows.tokens.device
        self._on_host = device.type == "cpu"
        sizes = {"kv_heads": cache.kv_heads, "dim": cache.head_dim, "blocks": blocks, "block_size": block_size}
        self._caches = [new_cache(**sizes, dtype=dtype, device=device) for _ in range(cache.layers)]
        self._batches = StepBatches(rows, block_size=block_size, kv_heads=cache.kv_heads, dtype=dtype)
        self._native = native_drafting(model, self._caches, rows.tokens, rows.tables, block_size)

    @property
    def is_native(self) -> bool:
        """Greedy rows are guessed for by one call."""
        return self._native is not None

    def pages(self) -> list[Tensor]:
        """Of each layer [2 x kv heads, blocks, block size x head dim]."""
        return [blocks_of(cache, self._blocks) for cache in self._caches]

    def run(self, plan: StepPlan) -> None:
        """Writes guesses into the rows' tokens and into the plan's verifications, which may be fewer than were planned."""
        drafting = [each for each in plan.verifications if each.draft_from is not None]
        if not drafting and not plan.catch_ups:
            return
        began = time.perf_counter()
        if self._native is not None and self._sampler.takes_likeliest(np.array([each.sequence.row for each in drafting], np.int64)):
            spans = self._read_prompts(self._native, drafting, plan.catch_ups)
            read = time.perf_counter()
            if drafting:
                plan.guesswork.promised = self._guess_at_once(self._native, drafting, spans, least=plan.guesswork.least_chance)
        else:
            hidden, ends = self._catch_up(drafting, plan.catch_ups)
            read = time.perf_counter()
            if drafting:
                self._guess(drafting, hidden, ends)
        plan.guesswork.reading_s, plan.guesswork.guessing_s = read - began, time.perf_counter() - read

    def _read_prompts(self, native: NativeDrafting, drafting: list[Verification], rest: list[Chunk]) -> list[range]:
        """Everything that is many tokens. Returns the positions of each of `drafting` that are left to read."""
        left = [range(each.draft_from or 0, each.start + 1) for each in drafting]
        long = [i for i, span in enumerate(left) if len(span) > FEW]
        chunks = [Chunk(drafting[i].sequence, left[i].start, len(left[i]) - 1, []) for i in long] + rest
        if chunks:
            native.read(read_alone(chunks))
        for i in long:
            left[i] = left[i][-1:]
        return left

    def _guess_at_once(self, native: NativeDrafting, drafting: list[Verification], spans: list[range], *, least: float) -> float:
        """Returns how many of its guesses the model thinks are right."""
        rows = np.array([each.sequence.row for each in drafting], np.int64)
        counts = np.array([len(span) for span in spans], np.int64)
        unread = np.repeat(rows, counts), np.array([at for span in spans for at in span], np.int64)
        at, wanted = (np.array(each, np.int64) for each in zip(*((v.start, len(v.drafts)) for v in drafting), strict=True))
        found = native.guess(unread, counts.cumsum() - 1, rows, at, wanted, least=least)
        for each, ids, made in zip(drafting, found.ids.tolist(), found.made.tolist(), strict=True):
            _settle_on(each, ids[:made])
        return float(found.chances.sum())

    def _catch_up(self, drafting: list[Verification], rest: list[Chunk]) -> tuple[Tensor, IntArray]:
        """Everything up to each row's newest token that the model has not read. Returns hidden states, and where each of `drafting`
        ends."""
        spans = [Chunk(each.sequence, each.draft_from or 0, each.start + 1 - (each.draft_from or 0), []) for each in drafting]
        short = [i for i, span in enumerate(spans) if span.count <= FEW]
        long = [i for i, span in enumerate(spans) if span.count > FEW]
        steps = StepPlan(
            verifications=[Verification(spans[i].sequence, spans[i].start, [0] * (spans[i].count - 1)) for i in short],
            chunks=[spans[i] for i in long] + rest,
        )
        batch = self._batches.lay_out(steps)
        hidden = self._model.forward(batch.there.ids, batch.there.positions, self._caches, batch.attention)
        return hidden, _ends(steps, batch, short, long, len(spans))

    def _guess(self, drafting: list[Verification], hidden: Tensor, ends: IntArray) -> None:
        at = np.array([each.start for each in drafting], np.int64)
        order = np.argsort(-at, kind="stable")
        members = [drafting[i] for i in order.tolist()]
        rows = np.array([each.sequence.row for each in members], np.int64)
        lengths = at[order] + 1
        wanted = np.array([len(each.drafts) for each in members])
        guesses: list[tuple[IntArray, Tensor]] = []
        hidden = hidden.index_select(0, torch.from_numpy(ends[order]).to(hidden.device))
        active = np.arange(len(members))
        for step in range(int(wanted.max())):
            ids = self._sampler.choose(self._model.logits(hidden), rows[active], lengths[active] + step, self._history)
            self._rows.keep(rows[active], lengths[active] + step, ids)
            guesses.append((active, ids))
            goes_on = wanted[active] > step + 1
            if self._on_host:  # elsewhere it would wait for the device to ask
                goes_on &= [token not in members[i].sequence.enders for i, token in zip(active.tolist(), ids.tolist(), strict=True)]
            active = active[goes_on]
            if not len(active):
                break
            hidden = self._one_more(rows[active], lengths[active] + step)
        self._sampler.guessed(rows)
        found: list[list[int]] = [[] for _ in members]
        for who, ids in guesses:
            for i, token in zip(who.tolist(), ids.tolist(), strict=True):
                found[i].append(max(token, 0))
        for each, guessed in zip(members, found, strict=True):
            _settle_on(each, guessed)

    def _one_more(self, rows: IntArray, at: IntArray) -> Tensor:
        """Hidden states of one token each."""
        starts = np.arange(len(rows) + 1)
        step = Layout(
            rows=rows,
            positions=at,
            sequence_rows=rows,
            contexts=at + 1,
            query_starts=starts,
            sampled_at=starts[:-1],
            sampled_rows=rows,
            lengths=at + 1,
            block_size=self._block_size,
        )
        there = self._rows.lay_out(step)
        attention = AttentionBatch(
            slots=there.slots,
            query_starts=there.query_starts,
            context_lens=there.context_lens,
            block_table=there.block_table,
            block_size=self._block_size,
            kv_heads=self._model.cache_shape.kv_heads,
            dtype=self._dtype,
            decode_lens=step.contexts.tolist(),
        )
        return self._model.forward(there.ids, there.positions, self._caches, attention)


def _settle_on(verification: Verification, guesses: list[int]) -> None:
    """Nothing follows what ends the sequence."""
    enders = verification.sequence.enders
    end = next((i for i, token in enumerate(guesses, start=1) if token in enders), len(guesses))
    verification.settle_on(guesses[:end])


def _ends(steps: StepPlan, batch: StepBatch, short: list[int], long: list[int], count: int) -> IntArray:
    """Of each span, the batch's index of its last token."""
    ends = np.zeros(count, np.int64)
    index_of = np.empty(steps.decode_tokens, np.int64)
    index_of[batch.plan_positions[: steps.decode_tokens]] = np.arange(steps.decode_tokens)
    last = np.cumsum([each.places for each in steps.verifications], dtype=np.int64) - 1
    ends[short] = index_of[last]
    ends[long] = steps.decode_tokens - 1 + np.cumsum([chunk.count for chunk in steps.chunks[: len(long)]], dtype=np.int64)
    return ends
