"""The tokens of a step as one native call takes them (models/native_llama.py): what decodes, then chunks. Pure; called by runner and
drafter."""

from dataclasses import dataclass

import numpy as np

from pagoda_worker.execution.step_batches import places
from pagoda_worker.models.native_llama import NOTHING
from pagoda_worker.sampling.row_tables import IntArray
from pagoda_worker.scheduling.plan import Chunk, StepPlan


@dataclass(frozen=True, slots=True)
class NativeStep:
    """See NativeLlama.step for the first three."""

    places: IntArray
    chunks: IntArray
    samplers: IntArray
    plan_positions: IntArray
    """Of each sampler, where the plan has it."""

    @property
    def token_rows(self) -> IntArray:
        """[T]."""
        return np.concatenate((self.places[0], np.repeat(self.chunks[0], self.chunks[2])))


def native_step(plan: StepPlan) -> NativeStep:
    rows, at = places(plan)
    numbers = np.empty((5, len(rows)), np.int64)
    numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] = rows, at, np.arange(len(rows)), rows, at + 1
    decoding, sampling = numbers[:2], numbers[2:]
    if not plan.chunks:
        return NativeStep(decoding, NOTHING, sampling, sampling[0])
    token, owners = len(rows) - 1, []
    for chunk in plan.chunks:
        token += chunk.count
        owners += [(token, sequence.row, chunk.start + chunk.count) for sequence in chunk.sequences]
    # Of one column before those of several, concatenate makes an array whose columns lie together.
    samplers = np.ascontiguousarray(np.concatenate((sampling, np.array(owners, np.int64).reshape(-1, 3).T), axis=1))
    # The plan has those that verify after everyone else.
    singles, parting, all_of_them = len(plan.decodes), len(owners), samplers.shape[1]
    order = np.concatenate((np.arange(singles), np.arange(singles + parting, all_of_them), np.arange(singles, singles + parting)))
    return NativeStep(decoding, read_alone(plan.chunks), samplers, order)


def read_alone(chunks: list[Chunk]) -> IntArray:
    """[3, C]: row, first position, count."""
    numbers = [(chunk.sequence.row, chunk.start, chunk.count) for chunk in chunks]
    return np.ascontiguousarray(np.array(numbers, np.int64).reshape(-1, 3).T)
