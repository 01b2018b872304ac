"""The part of the table that is about a worker's engine and what it runs on: spec.engine and spec.resources."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pagoda_operator.manifest.rules.adapters import ADAPTER_ROOM
from pagoda_operator.manifest.rules.backends import BACKEND_FIELDS
from pagoda_operator.manifest.rules.predicates import Field, Rule, at_least, between, matches, one_of
from pagoda_operator.manifest.rules.sources import MODEL_SCHEMES, MODEL_SOURCES, source_field
from pagoda_operator.manifest.rules.variants import of_each_engine, of_each_variant

_HOST_MEMORY = "write memory of the host, such as 8Gi, or 0 for none"

ENGINE_FIELDS: Mapping[str, Field] = {
    "spec.engine": Field("object"),
    **BACKEND_FIELDS,
    "spec.engine.dtype": Field("string", (Rule(one_of("auto", "bf16", "fp16", "fp32"), "write auto, bf16, fp16 or fp32"),), max_size=32),
    "spec.engine.attention": Field(
        "string",
        (Rule(one_of("auto", "triton", "flash", "native", "sdpa", "eager"), "write auto, triton, flash, native, sdpa or eager"),),
        max_size=32,
    ),
    "spec.engine.maxModelLen": Field(
        "integer", (Rule(between(16, 4_194_304), "write 16 to 4194304 tokens, or leave it out to use what the checkpoint was made for"),)
    ),
    "spec.engine.maxBatchTokens": Field("integer", (Rule(between(1, 1_048_576), "write 1 to 1048576 tokens"),)),
    "spec.engine.longPrefillTokens": Field("integer", (Rule(between(0, 1_048_576), "write 0 to 1048576 tokens; 0 is no cap"),)),
    "spec.engine.maxRunning": Field("integer", (Rule(between(1, 4096), "write 1 to 4096 sequences"),)),
    "spec.engine.load": Field("string", (Rule(one_of("eager", "lazy", "warm"), "write eager, lazy or warm"),), max_size=32),
    "spec.engine.prefixCaching": Field("boolean"),
    "spec.engine.batchInvariant": Field("boolean"),
    "spec.engine.compile": Field("boolean"),
    "spec.engine.tensorParallel": Field("integer", (Rule(between(1, 64), "write 1 to 64 processes that share each layer"),)),
    "spec.engine.pipelineParallel": Field(
        "integer", (Rule(one_of(1), "write 1, or leave it out: layers spread over a pipeline are not available in this version"),)
    ),
    "spec.engine.quantization": Field(
        "string", (Rule(one_of("none", "int8", "int4", "fp8"), "write none, int8, int4 or fp8"),), max_size=32
    ),
    **ADAPTER_ROOM,
    "spec.engine.speculative": Field(
        "object",
        (
            Rule(
                lambda given: (given.get("method") == "draft") == ("draft" in given),
                "method draft needs draft, the source of the model that guesses, and no other method takes it",
            ),
        ),
    ),
    "spec.engine.speculative.method": Field(
        "string", (Rule(one_of("none", "ngram", "suffix", "draft", "remote"), "write none, ngram, suffix, draft or remote"),), max_size=32
    ),
    "spec.engine.speculative.tokens": Field("integer", (Rule(between(1, 16), "write 1 to 16 tokens"),)),
    "spec.engine.speculative.draft": replace(source_field(*MODEL_SCHEMES, otherwise=MODEL_SOURCES), required=False),
    "spec.engine.kvCache": Field("object"),
    "spec.engine.kvCache.blockSize": Field("integer", (Rule(one_of(8, 16, 32, 64, 128), "write 8, 16, 32, 64 or 128 tokens"),)),
    "spec.engine.kvCache.dtype": Field("string", (Rule(one_of("auto", "int8", "fp8"), "write auto, int8 or fp8"),), max_size=32),
    "spec.engine.kvCache.swap": Field("quantity", (Rule(at_least("0"), _HOST_MEMORY),), max_size=32),
    "spec.engine.kvCache.hostTier": Field("quantity", (Rule(at_least("0"), _HOST_MEMORY),), max_size=32),
}

RESOURCE_FIELDS: Mapping[str, Field] = {
    "spec.resources": Field("object"),
    "spec.resources.gpus": Field(
        "integer",
        (Rule(between(0, 64), "write 0 for a CPU worker or 1 for a GPU worker; with engine.tensorParallel, as many as that"),),
    ),
    "spec.resources.gpuResource": Field(
        "string",
        (
            Rule(
                matches("[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"),
                "write the name under which the device plugin offers the GPUs, such as nvidia.com/gpu",
            ),
        ),
        max_size=128,
    ),
    "spec.resources.cpu": Field("quantity", (Rule(at_least("1m"), 'write cores above zero, such as "8" or "500m"'),), max_size=32),
    "spec.resources.memory": Field("quantity", (Rule(at_least("64Mi"), "write at least 64Mi, with a unit, such as 16Gi"),), max_size=32),
}


def _a_gpu_for_each_rank(spec: Mapping[str, Any]) -> bool:
    return all(
        resources.get("gpus", 0) in (0, engine.get("tensorParallel", 1))
        for resources, engine in of_each_variant(spec, "resources", "engine")
    )


RESOURCE_RULES = (
    Rule(
        _a_gpu_for_each_rank,
        "resources.gpus: write 0 for a CPU worker, or the number of engine.tensorParallel (left out, it is 1): each of its "
        "processes has one GPU",
    ),
)
"""Over the whole of spec."""

ENGINE_RULES = (
    Rule(
        of_each_engine(
            lambda engine, spec: engine.get("tensorParallel", 1) == 1 or not (engine.get("compile") or engine.get("batchInvariant"))
        ),
        "engine: tensorParallel above 1 does not go together with compile or batchInvariant: leave one of them out",
    ),
    Rule(
        of_each_engine(
            lambda engine, spec: (
                not engine.get("compile") or not (engine.get("batchInvariant") or engine.get("quantization", "none") != "none")
            )
        ),
        "engine: compile does not go together with batchInvariant or quantization: leave one of them out",
    ),
    Rule(
        of_each_engine(lambda engine, spec: not spec.get("adapters") or not (engine.get("compile") or engine.get("batchInvariant"))),
        "engine: compile and batchInvariant do not go together with spec.adapters: leave one of them out",
    ),
)
"""What the worker would refuse whatever model and device it has. Over the whole of spec."""
