"""The InferenceModel as people write it: parsed into frozen dataclasses, every problem found at once.

Knows no Kubernetes client and no files. Called by `plan` for stored objects and by the command line before it submits one.
What values a field takes, and the sentence for wrong ones, stand in `rules/`, which the CRD repeats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pagoda_operator.errors import InvalidManifest, Problem
from pagoda_operator.manifest.promises import Cost, Slo, cost, slo
from pagoda_operator.manifest.quantities import parse_duration, parse_quantity
from pagoda_operator.manifest.rules.table import with_overrides
from pagoda_operator.manifest.validate import in_path, problems_of

FETCHED = ("hf", "s3")
"""Schemes whose weights a fetch step brings before the worker starts."""


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
    """none | ngram | suffix | draft"""
    tokens: int = 4
    """Guessed for one sequence and step, at most."""
    draft: str | None = None
    """Source of the draft model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """A LoRA adapter of the model."""

    name: str
    source: str
    revision: str | None = None
    """Of a hub's repository. None: main."""

    @property
    def scheme(self) -> str:
        """hf | pvc | file"""
        return self.source.partition("://")[0]

    @property
    def location(self) -> str:
        return self.source.partition("://")[2]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingTarget:
    """What one worker may carry before another is started."""

    queued_tokens: int = 4096
    """Tokens that wait for a worker."""
    kv_use_percent: int = 80
    """Of its KV cache."""
    ttft_s: float | None = None
    """95th percentile of the time to the first token. None: not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    min: int = 1
    """0: an idle model sleeps."""
    max: int = 1
    mode: str = "auto"
    """auto: between min and max by the target. external: `replicas`, whatever min and max say."""
    replicas: int | None = None
    """Set by people or an autoscaler through the scale subresource. None in mode external: min, until somebody sets it."""
    idle_s: float = 600.0
    """Without a request for this long, all workers end; only where min is 0."""
    stable_s: float = 60.0
    """How long fewer workers must have been enough before one ends."""
    target: ScalingTarget = field(default_factory=ScalingTarget)

    @property
    def at_first(self) -> int:
        """Workers of a Deployment that is made now."""
        return self.min if self.replicas is None or self.mode != "external" else self.replicas

    @property
    def fixed(self) -> int | None:
        """The number of workers where no demand can change it. None: the autoscaler's choice, from min to max."""
        if self.mode == "external":
            return self.at_first
        return self.min if self.min == self.max else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    strategy: str = "surge"
    """surge: a new worker is routed before an old one ends. replace: an old one ends first, for nodes without room for one more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """Routers read it from the object themselves."""

    fallback: str | None = None
    """Name of the model that answers when this one cannot. None: none."""
    fallback_after_s: float = 10.0
    """How long a request waits for a worker of this one before that."""
    max_queue_tokens: int = 200_000
    """Tokens that may wait for this model before the router answers 429."""
    max_waiting: int = 256
    """Requests that each router holds while no worker of the model runs."""
    policy: str = "predicted"
    """How routers choose among its workers; they read it from the object themselves."""
    wake_timeout_s: float = 300.0
    """How long a request waits for a model that is being woken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretKey:
    name: str
    key: str = "token"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """A volume that keeps fetched weights, shared by a model's workers. Exactly one of claim and size_bytes is set."""

    claim: str | None = None
    """A PersistentVolumeClaim that exists."""
    size_bytes: int | None = None
    """Of the claim that is made for the model."""
    storage_class: str | None = None
    """None: the cluster's default."""
    access_mode: str = "ReadWriteMany"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    source: str
    revision: str | None = None
    """Branch, tag or commit of a hub's repository. None: main."""
    endpoint: str | None = None
    """Of the hub or the S3 server. None: the public one."""
    token_secret: SecretKey | None = None
    credentials_secret: str | None = None
    """Its keys are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if needed, AWS_SESSION_TOKEN and AWS_REGION."""
    cache: Cache | None = None
    """None: each worker fetches into a folder of its own pod."""

    @property
    def scheme(self) -> str:
        """builtin | file | hf | s3 | pvc"""
        return self.source.partition("://")[0]

    @property
    def location(self) -> str:
        """What follows "://": a name, an absolute folder, ORG/NAME, BUCKET/PREFIX, CLAIM/FOLDER."""
        return self.source.partition("://")[2]

    @property
    def fetched(self) -> bool:
        return self.scheme in FETCHED


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run the model: the model's own settings with the variant's overrides merged in."""

    name: str
    weight: int
    """Share of the requests that ask for no variant, beside the other variants' weights. 0: only those that ask for it."""
    engine: Engine
    resources: Resources
    scaling: Scaling


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    model: ModelSource
    served_names: tuple[str, ...]
    """Never empty: the object's own name when the manifest gives none."""
    engine: Engine
    resources: Resources
    scaling: Scaling
    rollout: Rollout
    routing: Routing
    variants: tuple[Variant, ...]
    """Never empty: `default` with weight 100 when the manifest gives none."""
    adapters: tuple[Adapter, ...] = ()
    slo: Slo | None = None
    """None: nothing is promised, and nothing alerts."""
    cost: Cost | None = None
    """None: nobody knows what a worker costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceModel:
    name: str
    namespace: str
    uid: str
    """Empty before the object is stored."""
    generation: int
    created: datetime | None
    """None before the object is stored: younger than everything that has a date."""
    spec: Spec
    document: Mapping[str, Any]
    """The manifest this came from, unchanged."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def variants(self) -> tuple[Variant, ...]:
        return self.spec.variants


def key_of(document: Mapping[str, Any]) -> str:
    """The key of a document that may not parse."""
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    return f"{metadata.get('namespace') or 'default'}/{metadata.get('name') or ''}"


def parse(document: Mapping[str, Any]) -> InferenceModel:
    """Raises InvalidManifest with every problem of the document."""
    if problems := problems_of(document):
        raise InvalidManifest(_shown_name(document), problems)
    metadata = document["metadata"]
    name = metadata["name"]
    return InferenceModel(
        name=name,
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 1,
        created=_moment(name, metadata.get("creationTimestamp")),
        spec=_spec(name, document["spec"]),
        document=document,
    )


def _shown_name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return in_path(name) if name else "(no name)"


def _spec(name: str, spec: Mapping[str, Any]) -> Spec:
    """The manifest's values are known to be right; absent ones take the dataclasses' defaults."""
    return Spec(
        model=_source(spec["model"]),
        served_names=tuple(spec.get("servedNames") or (name,)),
        engine=_engine(spec.get("engine", {})),
        resources=_resources(spec.get("resources", {})),
        scaling=_scaling(spec.get("scaling", {})),
        rollout=Rollout(**_given(spec.get("rollout", {}), strategy="strategy")),
        routing=_routing(spec.get("routing", {})),
        variants=tuple(_variant(spec, written) for written in spec.get("variants") or [{"name": "default"}]),
        adapters=tuple(Adapter(**_given(one, name="name", source="source", revision="revision")) for one in spec.get("adapters", ())),
        slo=slo(spec["slo"]) if "slo" in spec else None,
        cost=cost(spec["cost"]) if "cost" in spec else None,
    )


def _source(model: Mapping[str, Any]) -> ModelSource:
    token, credentials, cache = model.get("tokenSecretRef"), model.get("credentialsSecretRef"), model.get("cache")
    return ModelSource(
        **_given(model, source="source", revision="revision", endpoint="endpoint"),
        token_secret=None if token is None else SecretKey(**_given(token, name="name", key="key")),
        credentials_secret=None if credentials is None else credentials["name"],
        cache=None if cache is None else _cache(cache),
    )


def _cache(cache: Mapping[str, Any]) -> Cache:
    size = cache.get("size")
    return Cache(
        **_given(cache, claim="claim", storage_class="storageClass", access_mode="accessMode"),
        size_bytes=None if size is None else math.ceil(parse_quantity(size)),
    )


def _variant(spec: Mapping[str, Any], written: Mapping[str, Any]) -> Variant:
    return Variant(
        name=written["name"],
        weight=written.get("weight", 100),
        engine=_engine(with_overrides(spec, written, "engine")),
        resources=_resources(with_overrides(spec, written, "resources")),
        scaling=_scaling(with_overrides(spec, written, "scaling")),
    )


def _routing(routing: Mapping[str, Any]) -> Routing:
    times: dict[str, Any] = {
        attribute: float(parse_duration(routing[name]))
        for attribute, name in (("fallback_after_s", "fallbackAfter"), ("wake_timeout_s", "wakeTimeout"))
        if name in routing
    }
    return Routing(
        **_given(routing, fallback="fallback", max_queue_tokens="maxQueueTokens", max_waiting="maxWaiting", policy="policy"), **times
    )


def _engine(engine: Mapping[str, Any]) -> Engine:
    return Engine(
        **_given(
            engine,
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
        args=tuple(engine.get("args", ())),
        speculative=Speculative(**_given(engine.get("speculative", {}), method="method", tokens="tokens", draft="draft")),
        kv_cache=_kv_cache(engine.get("kvCache", {})),
        **_given(engine.get("adapters", {}), adapter_slots="slots", max_adapter_rank="maxRank"),
    )


def _kv_cache(given: Mapping[str, Any]) -> KvCache:
    return KvCache(
        **_given(given, block_size="blockSize", dtype="dtype"),
        swap_bytes=int(parse_quantity(given.get("swap", 0))),
        host_tier_bytes=int(parse_quantity(given.get("hostTier", 0))),
    )


def _resources(resources: Mapping[str, Any]) -> Resources:
    cpu, memory = resources.get("cpu"), resources.get("memory")
    return Resources(
        **_given(resources, gpus="gpus", gpu_resource="gpuResource"),
        cpu_cores=None if cpu is None else float(parse_quantity(cpu)),
        memory_bytes=None if memory is None else int(parse_quantity(memory)),
    )


def _scaling(scaling: Mapping[str, Any]) -> Scaling:
    least, target = scaling.get("min", 1), scaling.get("target", {})
    ttft: dict[str, Any] = {"ttft_s": float(parse_duration(target["ttft"]))} if "ttft" in target else {}
    return Scaling(
        min=least,
        max=scaling.get("max", max(least, 1)),
        **_given(scaling, mode="mode", replicas="replicas", idle_s="idleSeconds", stable_s="stableSeconds"),
        target=ScalingTarget(**_given(target, queued_tokens="queuedTokens", kv_use_percent="kvUsePercent"), **ttft),
    )


def _given(values: Mapping[str, Any], **attributes: str) -> dict[str, Any]:
    """{attribute: value} for the manifest's names that were written."""
    return {attribute: values[name] for attribute, name in attributes.items() if name in values}


def _moment(name: str, written: str | datetime | None) -> datetime | None:
    if written is None or written == "":
        return None
    try:
        moment = written if isinstance(written, datetime) else datetime.fromisoformat(written)
    except (TypeError, ValueError) as error:
        raise InvalidManifest(
            name, [Problem("metadata.creationTimestamp", "write a time such as 2026-01-31T12:00:00Z, or remove it")]
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
