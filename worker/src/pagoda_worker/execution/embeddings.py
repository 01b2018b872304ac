"""The hidden state of a prompt's last token as its embedding. Called by the runner after the forward pass; knows no requests' ends."""

import torch.nn.functional as F
from torch import Tensor

from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sampled import Sampled


def embed(plan: StepPlan, hidden: Tensor, sampled: Sampled) -> None:
    """hidden [T, E], normed by the model: decode rows first, then the chunks. Adds vectors of length 1, made in float32, to `sampled`;
    an empty one where numbers are not finite."""
    at = plan.decode_tokens - 1
    ends: dict[int, int] = {}
    for index, chunk in enumerate(plan.chunks):
        at += chunk.count
        if chunk.embeds:
            ends[index] = at
    if ends:
        vectors = F.normalize(hidden[list(ends.values())].float(), dim=-1)
        finite = vectors.isfinite().all(dim=-1).tolist()
        for index, vector, good in zip(ends, vectors.tolist(), finite, strict=True):
            sampled.embeddings[index] = vector if good else []
