"""How weights come into a worker's pod, for each kind of source."""

import json
from typing import Any

import pytest
from cases import SETTINGS, TINY, inference_model

from pagoda_operator.manifest.spec import parse
from pagoda_operator.render.objects import model_objects
from pagoda_operator.render.weights import Weights, draft_source, weights_of, with_draft

RESOURCES = {"gpus": 1, "cpu": "4", "memory": "16Gi"}
FULL = {
    "source": "hf://org/name",
    "revision": "v1",
    "endpoint": "http://hub.example:8080",
    "tokenSecretRef": {"name": "hub", "key": "hf-token"},
    "cache": {"size": "5Gi"},
}


def made(model: dict[str, Any]) -> list[dict[str, Any]]:
    return model_objects(parse(inference_model("chat", {"model": model, "resources": RESOURCES})), SETTINGS)


def pod(model: dict[str, Any]) -> dict[str, Any]:
    (deployment,) = (one for one in made(model) if one["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def fetch(model: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod(model)["initContainers"]
    return dict(container)


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def volume(model: dict[str, Any], name: str) -> Any:
    (found,) = (volume for volume in pod(model)["volumes"] if volume["name"] == name)
    return {key: value for key, value in found.items() if key != "name"}


def mounts(container: dict[str, Any]) -> dict[str, bool]:
    """Path → read-only."""
    return {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}


@pytest.mark.parametrize("source", [TINY, "pvc://models/chat", "file:///models/chat"])
def test_what_is_there_already_is_not_fetched(source: str) -> None:
    assert "initContainers" not in pod({"source": source})


def test_a_claims_folder_is_mounted_read_only_and_named_to_the_worker() -> None:
    model = {"source": "pvc://models/llm/chat"}
    (worker,) = pod(model)["containers"]
    assert variables(worker)["PAGODA_MODEL_SOURCE"] == "file:///models/pvc/llm/chat"
    assert mounts(worker)["/models/pvc"] is True
    assert volume(model, "model") == {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}


@pytest.mark.parametrize("source", ["pvc://models", "pvc://models/"])
def test_a_whole_claim_is_a_folder_too(source: str) -> None:
    assert variables(pod({"source": source})["containers"][0])["PAGODA_MODEL_SOURCE"] == "file:///models/pvc"


def test_fetching_is_the_worker_images_own_step_before_the_worker() -> None:
    assert fetch(FULL)["image"] == pod(FULL)["containers"][0]["image"]
    assert fetch(FULL)["command"] == ["python", "-m", "pagoda_worker.fetch"]


def test_both_come_to_the_same_folder() -> None:
    step, worker = variables(fetch(FULL)), variables(pod(FULL)["containers"][0])
    told = {
        "PAGODA_MODEL_SOURCE": "hf://org/name",
        "PAGODA_MODEL_REVISION": "v1",
        "PAGODA_MODEL_CACHE": "/models",
    }
    assert told.items() <= step.items()
    assert told.items() <= worker.items()


def test_only_the_fetch_step_is_told_where_to_ask() -> None:
    assert variables(fetch(FULL))["PAGODA_MODEL_ENDPOINT"] == "http://hub.example:8080"
    assert "PAGODA_MODEL_ENDPOINT" not in variables(pod(FULL)["containers"][0])


def test_a_hub_is_asked_for_main_and_a_bucket_for_no_revision() -> None:
    assert variables(fetch({"source": "hf://org/name"}))["PAGODA_MODEL_REVISION"] == "main"
    assert "PAGODA_MODEL_REVISION" not in variables(fetch({"source": "s3://bucket/name"}))


def test_only_the_fetch_step_sees_the_hubs_token() -> None:
    token = {"secretKeyRef": {"name": "hub", "key": "hf-token"}}
    assert variables(fetch(FULL))["PAGODA_HF_TOKEN"] == token
    assert "PAGODA_HF_TOKEN" not in variables(pod(FULL)["containers"][0])
    assert variables(fetch(FULL | {"tokenSecretRef": {"name": "hub"}}))["PAGODA_HF_TOKEN"]["secretKeyRef"]["key"] == "token"


def test_only_the_fetch_step_sees_a_buckets_credentials_and_of_the_secret_only_four_keys() -> None:
    model = {"source": "s3://bucket/name", "credentialsSecretRef": {"name": "s3"}}
    refs = {name: value["secretKeyRef"] for name, value in variables(fetch(model)).items() if name.startswith("AWS_")}
    assert {name: ref.get("optional", False) for name, ref in refs.items()} == {
        "AWS_ACCESS_KEY_ID": False,
        "AWS_SECRET_ACCESS_KEY": False,
        "AWS_SESSION_TOKEN": True,
        "AWS_REGION": True,
    }
    assert all(ref["name"] == "s3" and ref["key"] == name for name, ref in refs.items())
    assert not any(name.startswith("AWS_") for name in variables(pod(model)["containers"][0]))
    assert "envFrom" not in fetch(model)


def test_the_fetch_step_tells_its_progress_where_the_worker_will() -> None:
    assert variables(fetch(FULL))["PAGODA_HTTP_PORT"] == variables(pod(FULL)["containers"][0])["PAGODA_HTTP_PORT"]


def test_the_fetch_step_needs_no_more_than_the_worker_and_no_gpu() -> None:
    assert fetch(FULL)["resources"] == {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"cpu": "4", "memory": "16Gi"}}
    assert pod(FULL)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_cache_is_written_by_the_fetch_step_alone() -> None:
    assert mounts(fetch(FULL))["/models"] is False
    assert mounts(pod(FULL)["containers"][0])["/models"] is True


@pytest.mark.parametrize(
    ("cache", "where"),
    [
        (None, {"emptyDir": {}}),
        ({"size": "5Gi"}, {"persistentVolumeClaim": {"claimName": "chat-cache"}}),
        ({"claim": "shared"}, {"persistentVolumeClaim": {"claimName": "shared"}}),
    ],
    ids=str,
)
def test_weights_are_kept_where_the_manifest_says(cache: Any, where: Any) -> None:
    model = {"source": "hf://org/name"} | ({"cache": cache} if cache else {})
    assert volume(model, "models") == where
    claims = [one for one in made(model) if one["kind"] == "PersistentVolumeClaim"]
    assert [claim["metadata"]["name"] for claim in claims] == (["chat-cache"] if cache and "size" in cache else [])


def test_the_made_claim_is_what_the_manifest_says_and_goes_with_the_model() -> None:
    (claim,) = (one for one in made(FULL | {"cache": {"size": "5Gi", "storageClass": "fast"}}) if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"] == {"accessModes": ["ReadWriteMany"], "storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}
    assert [owner["name"] for owner in claim["metadata"]["ownerReferences"]] == ["chat"]


ADAPTED = [
    {"name": "sql", "source": "hf://org/sql", "revision": "v2"},
    {"name": "sum", "source": "pvc://claim/sum/v1"},
    {"name": "more", "source": "pvc://claim/more"},
    {"name": "local", "source": "file:///srv/local"},
]


def adapted_weights(source: str, **model: Any) -> Weights:
    return weights_of(parse(inference_model("chat", {"model": {"source": source, **model}, "adapters": ADAPTED})))


def test_adapters_of_a_hub_go_into_the_models_cache_and_folders_are_mounted_once() -> None:
    weights = adapted_weights("hf://org/base", cache={"size": "10Gi"})
    told = {each["name"]: each["source"] for each in json.loads(weights.env["PAGODA_ADAPTERS"])}
    assert told == {
        "sql": "hf://org/sql",
        "sum": "file:///adapter-claims/claim/sum/v1",
        "more": "file:///adapter-claims/claim/more",
        "local": "file:///srv/local",
    }
    assert (weights.fetch, weights.env["PAGODA_MODEL_CACHE"]) == (True, "/models")
    assert [mount["mountPath"] for mount in weights.mounts] == ["/models", "/adapter-claims/claim", "/srv/local"]
    assert len({volume["name"] for volume in weights.volumes}) == 3


def test_a_model_that_is_not_fetched_gets_a_fetch_step_for_its_adapters() -> None:
    weights = adapted_weights("builtin://tiny")
    assert (weights.source, weights.fetch, weights.env["PAGODA_MODEL_CACHE"]) == ("builtin://tiny", True, "/adapters")
    assert {"name": "adapters", "emptyDir": {}} in weights.volumes


def drafted(draft: str, model: str = "builtin://tiny") -> Weights:
    engine = {"speculative": {"method": "draft", "draft": draft}}
    parsed = parse(inference_model("chat", {"model": {"source": model}, "engine": engine}))
    return with_draft(weights_of(parsed), parsed.variants[0].engine.speculative)


@pytest.mark.parametrize(
    ("draft", "model", "cache", "mounted"),
    [
        ("builtin://tiny-draft", "builtin://tiny", None, []),
        ("file:///srv/draft", "builtin://tiny", None, ["/srv/draft"]),
        ("pvc://claim/small/v1", "builtin://tiny", None, ["/draft-claim"]),
        ("hf://org/small", "builtin://tiny", "/draft", ["/draft"]),
        ("s3://bucket/small", "hf://org/base", "/models", ["/models"]),
    ],
    ids=str,
)
def test_a_draft_model_comes_by_the_ways_of_a_model(draft: str, model: str, cache: str | None, mounted: list[str]) -> None:
    weights = drafted(draft, model)
    fetched = draft.startswith(("hf://", "s3://"))
    assert [mount["mountPath"] for mount in weights.mounts] == mounted
    assert (weights.fetch, weights.env.get("PAGODA_MODEL_CACHE")) == (cache is not None, cache)
    assert weights.env.get("PAGODA_DRAFT_SOURCE") == (draft if fetched else None)
    assert draft_source(draft) == ("file:///draft-claim/small/v1" if draft.startswith("pvc://") else draft)


def test_a_draft_model_of_a_hub_lets_the_fetch_step_out_to_it() -> None:
    engine = {"speculative": {"method": "draft", "draft": "hf://org/small"}}
    model = parse(inference_model("chat", {"model": {"source": "builtin://tiny"}, "engine": engine}))
    assert "chat-fetch-egress" in [each["metadata"]["name"] for each in model_objects(model, SETTINGS)]


def test_changed_adapters_are_another_template_and_none_leave_it_as_it_was() -> None:
    model = {"source": "builtin://tiny"}
    plain, none = (weights_of(parse(inference_model("chat", {"model": model, **more}))) for more in ({}, {"adapters": []}))
    assert plain == none
    assert "PAGODA_ADAPTERS" not in plain.env
