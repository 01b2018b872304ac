"""`compile: true`: the forward pass of steps that only decode, through torch.compile. A model around a model; knows no plans.

The compiler sees torch's operations, which it fuses, and one opaque operation a layer that writes the cache and attends as the device does
without it: that work follows from contexts and pages, for which no code should be specialised. One program serves every batch of two rows
or more, another the single row. Prompts run as without it. Made by loading; decode_graphs.py has it compile before anything is measured.
"""

import copy
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.layers.attention import AttentionBatch, AttentionShape
from pagoda_worker.layers.operators import Operators
from pagoda_worker.layers.parallel import Part
from pagoda_worker.models.base import ForwardPass, FusedLinear, Model

log = logging.getLogger(__name__)

_STEP: ContextVar[tuple[Operators, AttentionBatch]] = ContextVar("step")
"""Of the compiled call that runs: operations take tensors and numbers only, and a batch is more."""


@torch.library.custom_op("pagoda::store_and_attend", mutates_args=("cache",))
def _store_and_attend(query: Tensor, key_value: Tensor, cache: Tensor, scale: float, window: int | None) -> Tensor:
    operators, batch = _STEP.get()
    operators.store(key_value, cache, batch)
    return operators.attend(query, key_value, cache, batch, AttentionShape(scale, window))


@_store_and_attend.register_fake
def _shape_of_attended(query: Tensor, key_value: Tensor, cache: Tensor, scale: float, window: int | None) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1] * query.shape[2])


class TracedOperators(Operators):
    """What the compiler sees."""

    name = "traced"

    def __init__(self) -> None:
        super().__init__(_attend)

    def store(self, key_value: Tensor, cache: Tensor, batch: AttentionBatch) -> None:
        """Left to `attend`: one operation that changes the cache keeps the order of writing and reading."""


def _attend(query: Tensor, key_value: Tensor, cache: Tensor, batch: AttentionBatch, shape: AttentionShape) -> Tensor:
    attended: Tensor = torch.ops.pagoda.store_and_attend(query, key_value, cache, shape.scale, shape.window)
    return attended


class CompiledModel:
    def __init__(self, model: Model) -> None:
        """`model` has its weights, unpacked: packed ones are no tensors that a compiler can multiply with."""
        self._model = model
        self.cache_shape, self.vocab_size, self.operators = model.cache_shape, model.vocab_size, model.operators
        traced = copy.copy(model)  # the same layers and weights
        traced.operators = TracedOperators()
        self._decode = torch.compile(traced.forward, fullgraph=True)

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor], batch: AttentionBatch) -> Tensor:
        if batch.chunks:
            return self._model.forward(ids, positions, caches, batch)
        for rows in (ids, positions):
            torch._dynamo.maybe_mark_dynamic(rows, 0)
        step = _STEP.set((self.operators, batch))
        try:
            return self._decode(ids, positions, caches, batch)
        finally:
            _STEP.reset(step)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def destinations(self) -> dict[str, Tensor]:
        return self._model.destinations()

    def parts(self) -> dict[str, Part]:
        return self._model.parts()

    def linears(self) -> list[FusedLinear]:
        return self._model.linears()

    @property
    def optional_prefix(self) -> str:
        return self._model.optional_prefix

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        return self._model.ignored_suffixes

    def pack(self) -> None:
        """Nothing, see above."""


def check_compile(config: EngineConfig) -> None:
    """Raises ConfigError when it is asked for where it cannot be."""
    if not config.compile:
        return
    if config.batch_invariant:
        raise ConfigError(
            "compile and batchInvariant exclude each other: compiled products add up by the batch's size; leave one of them out"
        )
    if cxx() is None:
        raise ConfigError(
            "compile needs a C++ compiler where the worker runs, and there is none (CXX, c++, g++, clang++): leave compile out"
        )


def cxx() -> str | None:
    return next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)


@torch.inference_mode()
def compile_decoding(
    model: ForwardPass,
    caches: list[Tensor],
    *,
    dtype: torch.dtype,
    block_size: int,
    max_running: int,
    news: Callable[[str, int, int], None],
) -> None:
    """Runs one row and two rows, over caches in which nothing is yet: no request waits for a compiler. Raises ConfigError when it fails."""
    began, device = time.monotonic(), caches[0].device
    sizes = [rows for rows in (2, 1) if rows <= max_running]
    for done, rows in enumerate(sizes):
        news("compiling", done, len(sizes))
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        batch = AttentionBatch(
            slots=zeros,
            query_starts=torch.arange(rows + 1, dtype=torch.int32, device=device),
            context_lens=torch.ones(rows, dtype=torch.int32, device=device),
            block_table=torch.zeros((rows, 1), dtype=torch.int32, device=device),
            block_size=block_size,
            kv_heads=model.cache_shape.kv_heads,
            dtype=dtype,
            decode_lens=[1] * rows,
        )
        try:
            model.forward(zeros.clone(), zeros.clone(), caches, batch)
        except RuntimeError as error:  # whatever the compiler or the C++ compiler behind it says
            inner: BaseException = getattr(error, "inner_exception", error)
            first = str(inner).strip().partition("\n")[0]
            raise ConfigError(f"compile is true, and torch cannot compile this model here: {first}; leave compile out") from error
    log.info("compiled the decode step in %.1f s", time.monotonic() - began)
