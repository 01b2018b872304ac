"""Whose server the workers run: the fields of spec.engine that say so, and what does not go together with somebody else's.

Part of the one table; the CRD repeats the sentences. What a backend is started with is in `render/backend_pods.py`.
"""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.manifest.rules.predicates import Field, Rule, matches, one_of
from pagoda_operator.manifest.rules.variants import of_each_engine

OWN_BACKEND = "pagoda"
BACKENDS = (OWN_BACKEND, "vllm", "tgi", "tensorrt-llm")
OWN_FIELDS = ("attention", "longPrefillTokens", "load", "batchInvariant", "compile", "quantization", "speculative", "kvCache")
"""Of spec.engine: settings of our own engine that no other has under any name."""
READABLE = ("hf://", "pvc://", "file://")
"""Sources that other people's servers can read, by themselves or as a folder."""

BACKEND_FIELDS: Mapping[str, Field] = {
    "spec.engine.backend": Field("string", (Rule(one_of(*BACKENDS), "write pagoda, vllm, tgi or tensorrt-llm"),), max_size=32),
    "spec.engine.image": Field(
        "string",
        (
            Rule(
                matches("[A-Za-z0-9][A-Za-z0-9._:@/-]*"),
                "write the backend's container image with its version, such as vllm/vllm-openai:v0.32.0",
            ),
        ),
        max_size=512,
    ),
    "spec.engine.args": Field("list", max_size=64),
    "spec.engine.args[]": Field("string", max_size=1024),
}


def is_own(engine: Mapping[str, Any]) -> bool:
    return bool(engine.get("backend", OWN_BACKEND) == OWN_BACKEND)


BACKEND_RULES = (
    Rule(
        of_each_engine(lambda engine, spec: is_own(engine) or "image" in engine),
        "engine: a backend other than pagoda runs an image of its own: write engine.image beside it",
    ),
    Rule(
        of_each_engine(lambda engine, spec: not is_own(engine) or not ("image" in engine or "args" in engine)),
        "engine: image and args are for other backends than pagoda: remove them, or write engine.backend beside them",
    ),
    Rule(
        of_each_engine(lambda engine, spec: is_own(engine) or not any(name in engine for name in OWN_FIELDS)),
        "engine: attention, longPrefillTokens, load, batchInvariant, compile, quantization, speculative and kvCache are pagoda's own: "
        "remove them, or write what the other backend calls them into args",
    ),
    Rule(
        of_each_engine(
            lambda engine, spec: (
                engine.get("backend") != "tensorrt-llm"
                or not ("dtype" in engine or "prefixCaching" in engine or "revision" in spec["model"])
            )
        ),
        "engine: tensorrt-llm takes no dtype, prefixCaching or model.revision from here: remove them, and name its own file of options in "
        "args",
    ),
    Rule(
        of_each_engine(lambda engine, spec: is_own(engine) or spec["model"]["source"].startswith(READABLE)),
        "model.source: a backend other than pagoda reads hf://, pvc:// and file:// only: write one of these",
    ),
)
"""Over the whole of spec."""
