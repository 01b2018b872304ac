"""From what loading settled on to the sizes of everything that the engine is made of. Called by the engine once."""

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.execution.runner import RunnerShape
from pagoda_worker.loading.draft import draft_footprint
from pagoda_worker.loading.loader import Loaded
from pagoda_worker.sampling.constraints import Constraints
from pagoda_worker.scheduling.batching import policy_of
from pagoda_worker.scheduling.scheduler_limits import SchedulerLimits
from pagoda_worker.speculation.methods import proposer_of
from pagoda_worker.speculation.speculation import Speculation


def limits_of(config: EngineConfig, loaded: Loaded) -> SchedulerLimits:
    return SchedulerLimits(
        max_running=config.max_running,
        max_batch_tokens=loaded.max_batch_tokens,
        max_model_len=loaded.max_model_len,
        long_prefill_tokens=loaded.long_prefill_tokens,
        host=loaded.host,
        prefix_caching=config.prefix_caching,
        eos_token_ids=loaded.eos_token_ids,
        policy=policy_of(config),
        adapter_slots=loaded.adapter_slots,
    )


def shape_of(config: EngineConfig, loaded: Loaded) -> RunnerShape:
    return RunnerShape(
        max_running=config.max_running,
        max_model_len=loaded.max_model_len,
        block_size=config.block_size,
        block_count=loaded.block_count,
        host_slots=loaded.host.swap_slots + loaded.host.tier_slots,
        eos_token_ids=loaded.eos_token_ids,
        adapter_slots=loaded.adapter_slots,
        max_adapter_rank=config.max_adapter_rank,
    )


def speculation_for(config: EngineConfig, loaded: Loaded, constraints: Constraints) -> Speculation | None:
    draft = draft_footprint(config)
    catch_up = loaded.long_prefill_tokens or loaded.max_batch_tokens
    proposer = proposer_of(config, catch_up=catch_up, max_draft_len=draft.max_position if draft else 0)
    if proposer is None:
        return None
    return Speculation(proposer, tokens=config.draft_tokens, possible=constraints.longest_possible, with_model=draft is not None)


def plans_ahead(config: EngineConfig, device: torch.device) -> bool:
    """Without a KV cache a step begins with everyone's tokens, so all must be known."""
    return device.type == "cuda" and config.kv_cache if config.async_scheduling is None else config.async_scheduling
