"""Pod templates of workers that are somebody else's server: command, arguments, cache and probes of vLLM, TGI and TensorRT-LLM. No I/O.

Called by `objects` in place of `pods.worker_pod`. Host, port and model stand in the arguments as $(PAGODA_…), which Kubernetes replaces
from the container's environment, and so does the local executor with this machine's.
"""

from typing import Any

from pagoda_operator.manifest.engine import Engine
from pagoda_operator.manifest.source import ModelSource
from pagoda_operator.manifest.spec import InferenceModel, Variant
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.pods import (
    CACHES,
    GRPC_PORT,
    ROUTED_GATE,
    WORKER_STARTUP_S,
    Object,
    container_port,
    plain,
    pod_of,
    probes,
    restricted,
    worker_resources,
)
from pagoda_operator.render.weights import MODELS_FOLDER, Weights, cache_volume, secret_variable, weights_of

OPENAI_PORT = GRPC_PORT
"""The same number as our own workers' sessions have: routers may reach it, nobody else."""
MODEL, HOST, PORT = "$(PAGODA_BACKEND_MODEL)", "$(PAGODA_BIND_HOST)", "$(PAGODA_OPENAI_PORT)"
LONG_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def backend_pod(model: InferenceModel, variant: Variant, settings: Settings, *, account: str) -> Object:
    source, engine = model.spec.model, variant.engine
    found = _weights(model)
    # Their images know no user 10001, and some ask for the user's name.
    own = {"USER": "pagoda", "LOGNAME": "pagoda", **CACHES, **found.env}
    if engine.backend == "tgi":
        own |= {"HUGGINGFACE_HUB_CACHE": found.env.get("HF_HUB_CACHE", "/tmp/huggingface/hub")}  # noqa: S108  its launcher's own name for it
        own |= {} if engine.prefix_caching else {"PREFIX_CACHING": "0"}
    container = {
        "name": "worker",
        "image": engine.image,
        "command": _program(engine.backend),
        "args": [*_arguments(engine, model.name, source), *engine.args],
        "env": [
            *plain(
                PAGODA_MODEL_SOURCE=source.source,
                PAGODA_BACKEND_MODEL=found.source,
                PAGODA_BIND_HOST="0.0.0.0",  # noqa: S104  the pod's own address; a network policy lets only routers in
                PAGODA_OPENAI_PORT=OPENAI_PORT,
                **own,
            ),
            *found.fetch_env,
        ],
        "ports": [container_port("openai", OPENAI_PORT)],
        "resources": worker_resources(variant.resources),
        **probes("openai", startup_s=WORKER_STARTUP_S, ready="/health"),
        # These servers break off what runs when they are told to end: they are told once routers have had the time to finish it.
        "lifecycle": {"preStop": {"sleep": {"seconds": max(1, settings.drain_s)}}},
    }
    folders = {"tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108  volumes of the pod's own
    pod = pod_of([restricted(container, settings, folders, found.mounts)], folders, settings, account=account)
    pod["volumes"] += found.volumes
    pod["readinessGates"] = [{"conditionType": ROUTED_GATE}]
    return pod


def _weights(model: InferenceModel) -> Weights:
    """From a hub the server fetches for itself, into the cache's volume; folders are mounted as our own workers have them."""
    source = model.spec.model
    if source.scheme != "hf":
        mounted = weights_of(model)
        return Weights(source=mounted.source.removeprefix("file://"), volumes=mounted.volumes, mounts=mounted.mounts)
    variables = []
    if source.endpoint is not None:
        variables.append({"name": "HF_ENDPOINT", "value": source.endpoint})
    if source.token_secret is not None:
        variables.append(secret_variable("HF_TOKEN", source.token_secret.name, source.token_secret.key))
    return Weights(
        source=source.location,
        env={"HF_HOME": MODELS_FOLDER, "HF_HUB_CACHE": f"{MODELS_FOLDER}/hub"},
        fetch_env=variables,
        volumes=[cache_volume(model)],
        mounts=[{"name": "models", "mountPath": MODELS_FOLDER}],
    )


def _program(backend: str) -> list[str]:
    """Written out, as the entry points of their images have changed; all are on the image's PATH."""
    return {"vllm": ["vllm", "serve"], "tgi": ["text-generation-launcher"], "tensorrt-llm": ["trtllm-serve"]}[backend]


def _arguments(engine: Engine, name: str, source: ModelSource) -> list[str]:
    revision = source.revision if source.scheme == "hf" else None
    ranks = engine.tensor_parallel if engine.tensor_parallel > 1 else None
    match engine.backend:
        case "vllm":
            own = _flags(dtype=LONG_DTYPES.get(engine.dtype), max_model_len=engine.max_model_len, revision=revision)
            own += _flags(max_num_batched_tokens=engine.max_batch_tokens, max_num_seqs=engine.max_running)
            own += ["--enable-prompt-tokens-details"]  # else nobody learns what of a prompt was cached, and all is billed as computed
            own += _flags(tensor_parallel_size=ranks)
            own += [] if engine.prefix_caching else ["--no-enable-prefix-caching"]
            return [MODEL, "--served-model-name", name, "--host", HOST, "--port", PORT, *own]
        case "tgi":
            own = _flags(dtype=LONG_DTYPES.get(engine.dtype), max_total_tokens=engine.max_model_len, revision=revision)
            own += _flags(max_batch_prefill_tokens=engine.max_batch_tokens, max_concurrent_requests=engine.max_running)
            own += _flags(num_shard=ranks)
            return ["--model-id", MODEL, "--hostname", HOST, "--port", PORT, *own]
        case _:
            own = _flags("_", max_seq_len=engine.max_model_len, max_num_tokens=engine.max_batch_tokens, max_batch_size=engine.max_running)
            own += _flags("_", tp_size=ranks)
            return [MODEL, "--host", HOST, "--port", PORT, *own]


def _flags(separator: str = "-", **values: Any) -> list[str]:
    """--name value for each that is given."""
    return [word for name, value in values.items() if value is not None for word in (f"--{name.replace('_', separator)}", str(value))]
