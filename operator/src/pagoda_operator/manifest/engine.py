"""How the engine of a worker runs and on what, `spec.engine` and `spec.resources`: parsed, without I/O.

Called by `spec.parse` with values that are known to be right, once for the model and once for each variant.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pagoda_operator.manifest.given import given
from pagoda_operator.manifest.quantities import parse_quantity


@dataclass(frozen=True, kw_only=True, slots=True)
class KvCache:
    block_size: int = 16
    """Tokens per block of the paged cache."""
    dtype: str = "auto"
    """auto: as spec.engine.dtype. int8, fp8: quantized, a scale per token and head."""
    swap_bytes: int = 0
    """Host memory for preempted sequences."""
    host_tier_bytes: int = 0
    """Host memory for evicted prefixes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculative:
    method: str = "none"
    """none | ngram | suffix | draft | remote"""
    tokens: int = 4
    """Guessed for one sequence and step, at most."""
    draft: str | None = None
    """Source of the draft model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    backend: str = "pagoda"
    """pagoda | vllm | tgi | tensorrt-llm: whose server the workers are."""
    image: str | None = None
    """Of another backend than ours."""
    args: tuple[str, ...] = ()
    """Of its command line, after those made from the fields here."""
    dtype: str = "auto"
    attention: str = "auto"
    max_model_len: int | None = None
    """Prompt + output of one sequence, tokens. None: what the checkpoint was made for."""
    max_batch_tokens: int | None = None
    """Tokens of one step. None: what suits the device (the worker knows)."""
    long_prefill_tokens: int | None = None
    """Prompt tokens of a step in which something decodes. None: what suits the device (the worker knows)."""
    max_running: int = 256
    load: str = "eager"
    """When weights are read; lazy: with the first request."""
    prefix_caching: bool = True
    batch_invariant: bool = False
    compile: bool = False
    tensor_parallel: int = 1
    """Processes of one worker that share each layer."""
    pipeline_parallel: int = 1
    quantization: str = "none"
    """int8, int4, fp8: weights are rounded to it while they are loaded."""
    speculative: Speculative = field(default_factory=Speculative)
    kv_cache: KvCache = field(default_factory=KvCache)
    adapter_slots: int | None = None
    """Adapters that may run at once. None: what suits the device (the worker knows)."""
    max_adapter_rank: int | None = None
    """None: 64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    gpus: int = 0
    """Per worker. 0: a CPU worker."""
    gpu_resource: str = "nvidia.com/gpu"
    cpu_cores: float | None = None
    """None: no request and no limit; the worker uses what it finds."""
    memory_bytes: int | None = None


def engine(written: Mapping[str, Any]) -> Engine:
    return Engine(
        **given(
            written,
            backend="backend",
            image="image",
            dtype="dtype",
            attention="attention",
            max_model_len="maxModelLen",
            max_batch_tokens="maxBatchTokens",
            long_prefill_tokens="longPrefillTokens",
            max_running="maxRunning",
            load="load",
            prefix_caching="prefixCaching",
            batch_invariant="batchInvariant",
            compile="compile",
            tensor_parallel="tensorParallel",
            pipeline_parallel="pipelineParallel",
            quantization="quantization",
        ),
        args=tuple(written.get("args", ())),
        speculative=Speculative(**given(written.get("speculative", {}), method="method", tokens="tokens", draft="draft")),
        kv_cache=_kv_cache(written.get("kvCache", {})),
        **given(written.get("adapters", {}), adapter_slots="slots", max_adapter_rank="maxRank"),
    )


def resources(written: Mapping[str, Any]) -> Resources:
    cpu, memory = written.get("cpu"), written.get("memory")
    return Resources(
        **given(written, gpus="gpus", gpu_resource="gpuResource"),
        cpu_cores=None if cpu is None else float(parse_quantity(cpu)),
        memory_bytes=None if memory is None else int(parse_quantity(memory)),
    )


def _kv_cache(written: Mapping[str, Any]) -> KvCache:
    return KvCache(
        **given(written, block_size="blockSize", dtype="dtype"),
        swap_bytes=int(parse_quantity(written.get("swap", 0))),
        host_tier_bytes=int(parse_quantity(written.get("hostTier", 0))),
    )
