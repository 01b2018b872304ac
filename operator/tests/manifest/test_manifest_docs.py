"""docs/manifest.md tells of every field, and its defaults are those that the parser fills in."""

import re
from collections.abc import Callable

import pytest
from cases import REPOSITORY, inference_model

from pagoda_operator.manifest.promises import Slo
from pagoda_operator.manifest.quantities import parse_duration
from pagoda_operator.manifest.rules.table import FIELDS
from pagoda_operator.manifest.rules.variants import OVERRIDABLE, VARIANT
from pagoda_operator.manifest.source import Cache, SecretKey
from pagoda_operator.manifest.spec import Spec, parse

PAGE = (REPOSITORY / "docs/manifest.md").read_text()
ROWS = {row[1]: row[2].strip() for row in re.finditer(r"^\| `(spec[^`]*)` \|([^|]*)\|", PAGE, re.MULTILINE)}
DEFAULTS: dict[str, Callable[[Spec], object]] = {
    "spec.model.tokenSecretRef.key": lambda _: SecretKey(name="x").key,
    "spec.model.cache.accessMode": lambda _: Cache().access_mode,
    "spec.routing.fallback": lambda spec: spec.routing.fallback,
    "spec.routing.fallbackAfter": lambda spec: spec.routing.fallback_after_s,
    "spec.routing.maxQueueTokens": lambda spec: spec.routing.max_queue_tokens,
    "spec.routing.maxWaiting": lambda spec: spec.routing.max_waiting,
    "spec.routing.policy": lambda spec: spec.routing.policy,
    "spec.routing.wakeTimeout": lambda spec: spec.routing.wake_timeout_s,
    "spec.engine.backend": lambda spec: spec.engine.backend,
    "spec.engine.dtype": lambda spec: spec.engine.dtype,
    "spec.engine.attention": lambda spec: spec.engine.attention,
    "spec.engine.maxRunning": lambda spec: spec.engine.max_running,
    "spec.engine.load": lambda spec: spec.engine.load,
    "spec.engine.prefixCaching": lambda spec: spec.engine.prefix_caching,
    "spec.engine.batchInvariant": lambda spec: spec.engine.batch_invariant,
    "spec.engine.compile": lambda spec: spec.engine.compile,
    "spec.engine.tensorParallel": lambda spec: spec.engine.tensor_parallel,
    "spec.engine.pipelineParallel": lambda spec: spec.engine.pipeline_parallel,
    "spec.engine.quantization": lambda spec: spec.engine.quantization,
    "spec.engine.speculative.method": lambda spec: spec.engine.speculative.method,
    "spec.engine.speculative.tokens": lambda spec: spec.engine.speculative.tokens,
    "spec.engine.kvCache.blockSize": lambda spec: spec.engine.kv_cache.block_size,
    "spec.engine.kvCache.dtype": lambda spec: spec.engine.kv_cache.dtype,
    "spec.engine.kvCache.swap": lambda spec: spec.engine.kv_cache.swap_bytes,
    "spec.engine.kvCache.hostTier": lambda spec: spec.engine.kv_cache.host_tier_bytes,
    "spec.resources.gpus": lambda spec: spec.resources.gpus,
    "spec.resources.gpuResource": lambda spec: spec.resources.gpu_resource,
    "spec.scaling.min": lambda spec: spec.scaling.min,
    "spec.scaling.mode": lambda spec: spec.scaling.mode,
    "spec.scaling.idleSeconds": lambda spec: int(spec.scaling.idle_s),
    "spec.scaling.stableSeconds": lambda spec: int(spec.scaling.stable_s),
    "spec.scaling.target.queuedTokens": lambda spec: spec.scaling.target.queued_tokens,
    "spec.scaling.target.kvUsePercent": lambda spec: spec.scaling.target.kv_use_percent,
    "spec.rollout.strategy": lambda spec: spec.rollout.strategy,
    "spec.slo.objective": lambda _: f"{Slo().objective * 100}%",
    "spec.variants[].weight": lambda spec: spec.variants[0].weight,
}


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    repeated = tuple(f"{VARIANT}.{section}." for section in OVERRIDABLE)
    assert sorted(ROWS) == sorted(path for path in FIELDS if path != "spec" and not path.startswith(repeated))


def test_required_fields_are_called_so() -> None:
    assert {path for path, default in ROWS.items() if default == "required"} == {
        path for path, field in FIELDS.items() if field.required and path != "spec"
    }


@pytest.mark.parametrize("path", DEFAULTS)
def test_a_default_is_the_one_that_the_parser_fills_in(path: str) -> None:
    told, value = ROWS[path].strip("`"), DEFAULTS[path](parse(inference_model()).spec)
    assert str(value).lower() == (str(float(parse_duration(told))) if isinstance(value, float) else told.lower())


def test_every_literal_default_is_compared() -> None:
    literal = {path for path, default in ROWS.items() if re.fullmatch("`[^` ]+`", default)}
    assert literal - DEFAULTS.keys() == {"spec.model.revision", "spec.adapters[].revision", "spec.servedNames", "spec.scaling.replicas"}
