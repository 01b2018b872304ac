"""What a scheduler is bounded by, what it counts, and which requests can never run under its limits. Pure; called by the scheduler."""

from dataclasses import dataclass, field

from pagoda_worker.errors import ContextTooLong, RequestRefused
from pagoda_worker.request import Request
from pagoda_worker.scheduling.batching import FULL_ENGINE, AdmissionPolicy
from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.residency import HostRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    max_running: int
    max_batch_tokens: int
    max_model_len: int
    long_prefill_tokens: int | None = None
    """Prompt tokens of a step in which something decodes. None: no cap of its own."""
    host: HostRoom = field(default_factory=HostRoom)
    prefix_caching: bool = True
    eos_token_ids: tuple[int, ...] = ()
    policy: AdmissionPolicy = FULL_ENGINE
    adapter_slots: int = 0
    """Adapters that sequences which run at once may have."""


@dataclass(slots=True)
class Totals:
    """Since the start; read by the engine for its state."""

    preemptions: int = 0
    swaps: int = 0
    """Of the preemptions, those that kept their blocks on the host."""
    prefix_queries: int = 0
    prefix_hits: int = 0
    host_queries: int = 0
    """Prompt tokens that the device did not have, looked up in the host tier."""
    host_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


def check_room(request: Request, limit: int, limits: SchedulerLimits, blocks: BlockPool) -> None:
    """`limit`: the length at which it would end. Raises RequestRefused, ContextTooLong."""
    length = len(request.prompt_ids) + len(request.resume_ids)
    if length >= limits.max_model_len:
        raise ContextTooLong(
            f"the prompt has {length} tokens; this model takes {limits.max_model_len} in all, prompt and output together: "
            f"shorten the prompt to at most {limits.max_model_len - 1}",
            param="prompt_ids",
        )
    if len(request.resume_ids) >= request.max_tokens:
        raise RequestRefused(
            f"resume_ids holds {len(request.resume_ids)} tokens and max_tokens is {request.max_tokens}: nothing is left to generate",
            param="resume_ids",
        )
    # The last sampled token is never written to the cache.
    needed, capacity = -(-(limit - 1) // blocks.block_size), blocks.count
    if needed > capacity:
        size = blocks.block_size
        raise ContextTooLong(
            f"prompt and max_tokens need {needed * size} tokens of KV cache; the whole cache holds {capacity * size}: "
            f"shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
