"""How a worker's pod gets its weights: nothing to do, a folder that is mounted, or a fetch step before the worker starts.

builtin://  inside the image
file://     the node's folder, at its own path
pvc://      the claim, read-only at /models/pvc
hf:// s3:// fetched into /models: the cache's claim, or a folder that ends with the pod
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

from pagoda_operator.manifest.engine import Speculative
from pagoda_operator.manifest.source import FETCHED
from pagoda_operator.manifest.spec import InferenceModel

MODELS_FOLDER = "/models"
CLAIM_FOLDER = "/models/pvc"
ADAPTERS_FOLDER = "/adapters"
"""Where adapters are fetched to when the model itself is not fetched: not below /models, where a claim may be mounted."""
ADAPTER_CLAIMS = "/adapter-claims"
DRAFT_FOLDER, DRAFT_CLAIM = "/draft", "/draft-claim"
"""Where a draft model is fetched to when nothing else is, and where its claim is."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True, "AWS_REGION": True}
"""Keys of the credentials Secret, and whether each may be absent. Named one by one: no other key of the Secret becomes a variable."""

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    source: str
    """PAGODA_MODEL_SOURCE of the worker."""
    env: dict[str, str] = field(default_factory=dict)
    """Of the worker and of the fetch step: both must come to the same folder."""
    fetch_env: list[Object] = field(default_factory=list)
    """Of the fetch step alone: where to ask, and with whose rights."""
    fetch: bool = False
    volumes: list[Object] = field(default_factory=list)
    mounts: list[Object] = field(default_factory=list)
    """Of the worker: read-only. The fetch step may write there."""


def cache_name(model_name: str) -> str:
    return f"{model_name}-cache"


def weights_of(model: InferenceModel) -> Weights:
    """Of the model and of its adapters."""
    return with_adapters(_of_model(model), model)


def with_adapters(weights: Weights, model: InferenceModel) -> Weights:
    """hf:// is fetched by the same step into the model's cache, or, when the model needs none, into a folder that ends with the pod.
    Folders of claims and of the node are mounted beside the model's."""
    if not model.spec.adapters:
        return weights
    env, volumes, mounts = dict(weights.env), list(weights.volumes), list(weights.mounts)
    told, fetches = [], weights.fetch
    for adapter in model.spec.adapters:
        source = adapter.source
        if adapter.scheme == "hf" and "PAGODA_MODEL_CACHE" not in env:
            fetches, env["PAGODA_MODEL_CACHE"] = True, ADAPTERS_FOLDER
            volumes.append({"name": "adapters", "emptyDir": {}})
            mounts.append(_read_only("adapters", ADAPTERS_FOLDER))
        elif adapter.scheme == "pvc":
            claim, _, folder = adapter.location.partition("/")
            path = f"{ADAPTER_CLAIMS}/{claim}"
            source = f"file://{path}/{folder}".rstrip("/")
            _add_once(volumes, {"name": _volume_name(path), "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
            _add_once(mounts, _read_only(_volume_name(path), path))
        elif adapter.scheme == "file":
            path = adapter.location.rstrip("/")
            _add_once(volumes, {"name": _volume_name(path), "hostPath": {"path": path, "type": "Directory"}})
            _add_once(mounts, _read_only(_volume_name(path), path))
        told.append({"name": adapter.name, "source": source} | ({"revision": adapter.revision} if adapter.revision else {}))
    env["PAGODA_ADAPTERS"] = json.dumps(told, separators=(",", ":"))
    return replace(weights, env=env, volumes=volumes, mounts=mounts, fetch=fetches)


def _add_once(documents: list[Object], document: Object) -> None:
    if document not in documents:
        documents.append(document)


def _volume_name(path: str) -> str:
    """A folder's own, whatever it is called."""
    return f"adapter-{hashlib.sha256(path.encode()).hexdigest()[:10]}"


def _of_model(model: InferenceModel) -> Weights:
    source = model.spec.model
    match source.scheme:
        case "hf" | "s3":
            return _fetched(model)
        case "pvc":
            claim, _, folder = source.location.partition("/")
            volume = {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
            path = f"{CLAIM_FOLDER}/{folder}".rstrip("/")
            return Weights(source=f"file://{path}", volumes=[volume], mounts=[_read_only("model", CLAIM_FOLDER)])
        case "file":
            volume = {"name": "model", "hostPath": {"path": source.location, "type": "Directory"}}
            return Weights(source=source.source, volumes=[volume], mounts=[_read_only("model", source.location)])
        case _:
            return Weights(source=source.source)


def draft_source(source: str) -> str:
    """As the worker finds it: a claim is a folder there."""
    scheme, _, location = source.partition("://")
    return f"file://{DRAFT_CLAIM}/{location.partition('/')[2]}".rstrip("/") if scheme == "pvc" else source


def with_draft(weights: Weights, speculative: Speculative) -> Weights:
    """A draft model comes as the model itself: it lies inside the image, in a folder of the node or of a claim, or the same step fetches
    it, into the model's cache or, where there is none, into a folder that ends with the pod."""
    if speculative.draft is None:
        return weights
    scheme, _, location = speculative.draft.partition("://")
    env, volumes, mounts = dict(weights.env), list(weights.volumes), list(weights.mounts)
    if scheme == "file":
        volumes.append({"name": "draft", "hostPath": {"path": location, "type": "Directory"}})
        mounts.append(_read_only("draft", location))
    elif scheme == "pvc":
        volumes.append({"name": "draft", "persistentVolumeClaim": {"claimName": location.partition("/")[0], "readOnly": True}})
        mounts.append(_read_only("draft", DRAFT_CLAIM))
    elif scheme in FETCHED:
        env["PAGODA_DRAFT_SOURCE"] = speculative.draft
        if "PAGODA_MODEL_CACHE" not in env:
            env["PAGODA_MODEL_CACHE"] = DRAFT_FOLDER
            volumes.append({"name": "draft", "emptyDir": {}})
            mounts.append(_read_only("draft", DRAFT_FOLDER))
    return replace(weights, env=env, volumes=volumes, mounts=mounts, fetch=weights.fetch or scheme in FETCHED)


def _fetched(model: InferenceModel) -> Weights:
    source = model.spec.model
    env = {"PAGODA_MODEL_CACHE": MODELS_FOLDER}
    if source.scheme == "hf":
        env["PAGODA_MODEL_REVISION"] = source.revision or "main"
    fetch_env: list[Object] = []
    if source.endpoint is not None:
        fetch_env.append({"name": "PAGODA_MODEL_ENDPOINT", "value": source.endpoint})
    if source.token_secret is not None:
        fetch_env.append(secret_variable("PAGODA_HF_TOKEN", source.token_secret.name, source.token_secret.key))
    if source.credentials_secret is not None:
        fetch_env += [secret_variable(name, source.credentials_secret, name, optional=optional) for name, optional in CREDENTIALS.items()]
    return Weights(
        source=source.source,
        env=env,
        fetch_env=fetch_env,
        fetch=True,
        volumes=[cache_volume(model)],
        mounts=[_read_only("models", MODELS_FOLDER)],
    )


def cache_volume(model: InferenceModel) -> Object:
    """Where fetched weights lie: the cache's claim, or a folder that ends with the pod."""
    cache = model.spec.model.cache
    if cache is None:
        return {"name": "models", "emptyDir": {}}
    return {"name": "models", "persistentVolumeClaim": {"claimName": cache.claim or cache_name(model.name)}}


def _read_only(name: str, path: str) -> Object:
    return {"name": name, "mountPath": path, "readOnly": True}


def secret_variable(variable: str, secret: str, key: str, *, optional: bool = False) -> Object:
    ref: Object = {"name": secret, "key": key}
    return {"name": variable, "valueFrom": {"secretKeyRef": ref | {"optional": True} if optional else ref}}
