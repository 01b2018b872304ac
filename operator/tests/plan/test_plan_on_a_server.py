"""Plans on a real API server: what it stores of our objects, with its defaults in them, is what we want; and what people change comes
back. No controller runs there: nothing but the API itself changes an object."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from api_server import ALL_KINDS, ApiServer
from cases import SETTINGS, TINY, inference_model, world

from pagoda_operator.labels import LABEL_VARIANT
from pagoda_operator.observed.world import ObjectRef, Observed, ref_of
from pagoda_operator.plan.plan import Plan, plan

CLUSTER = replace(
    SETTINGS,
    master_key=b"0123456789abcdef",
    router_replicas=2,
    image_registry="registry.example:5000",
    image_pull_secrets=("pull",),
    operator_namespace="pagoda-system",
    api_server_cidrs=("10.0.0.1/32",),
)
EVERYTHING: dict[str, Any] = {
    "model": {
        "source": "hf://org/name",
        "endpoint": "http://hub.example:8080",
        "tokenSecretRef": {"name": "hub"},
        "cache": {"size": "3000Mi", "storageClass": "fast"},
    },
    "resources": {"gpus": 1, "cpu": "2500m", "memory": "1.5Gi"},
    "scaling": {"min": 0, "max": 4},
    "variants": [{"name": "default"}, {"name": "canary", "weight": 5, "engine": {"dtype": "fp32"}, "scaling": {"min": 3}}],
    "rollout": {"strategy": "replace"},
}
BACKENDS: dict[str, Any] = {
    "model": {"source": "hf://org/name", "tokenSecretRef": {"name": "hub"}, "cache": {"claim": "models"}},
    "variants": [
        {"name": "own"},
        {"name": "vllm", "engine": {"backend": "vllm", "image": "vllm/vllm-openai:v0.32.0", "args": ["--seed", "1"]}},
        {"name": "tgi", "weight": 0, "engine": {"backend": "tgi", "image": "tgi:3", "prefixCaching": False}},
        {"name": "trt", "weight": 0, "engine": {"backend": "tensorrt-llm", "image": "trt:1"}},
    ],
}
SPECS: dict[str, dict[str, Any]] = {
    "shipped": {"model": {"source": TINY}},
    "bounded": {"model": {"source": TINY}, "resources": {"cpu": 1, "memory": "4Gi"}, "scaling": {"min": 3}},
    "everything": EVERYTHING,
    "backends": BACKENDS,
    "claim": {"model": {"source": "pvc://models/chat"}},
    "bucket": {"model": {"source": "s3://bucket/chat", "credentialsSecretRef": {"name": "s3"}, "cache": {"claim": "models"}}},
}


def carry_out(server: ApiServer, change: Plan, observed: Observed) -> Observed:
    stored = {ref_of(document): server.apply(document) for document in change.apply}
    for ref in change.delete:
        server.delete(ALL_KINDS[ref.kind].path(ref.namespace, ref.name))
    left = {ref: live for ref, live in observed.objects.items() if ref not in change.delete}
    return world(*(left | stored).values())


def in_namespace(server: ApiServer, namespace: str, specs: Sequence[dict[str, Any]]) -> Observed:
    """After each spec was carried out in turn."""
    server.namespace(namespace)
    observed = world()
    for spec in specs:
        observed = carry_out(server, plan([document(namespace, spec)], observed, CLUSTER), observed)
        assert plan([document(namespace, spec)], observed, CLUSTER).reasons == ()
    return observed


def document(namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return inference_model("chat", spec, namespace=namespace)


@pytest.mark.parametrize("name", SPECS)
def test_what_the_api_server_stores_is_what_we_want(name: str, api_server: ApiServer) -> None:
    in_namespace(api_server, f"fresh-{name}", [SPECS[name]])


def test_any_change_of_spec_is_stored_in_one_step(api_server: ApiServer) -> None:
    order = [*SPECS.values(), *reversed(SPECS.values())]
    observed = in_namespace(api_server, "changing", order)
    fresh = in_namespace(api_server, "never-changed", order[-1:])
    names = {(ref.kind, ref.name) for ref in observed.objects}
    assert names - {("PersistentVolumeClaim", "chat-cache")} == {(ref.kind, ref.name) for ref in fresh.objects}
    for ref, live in fresh.objects.items():
        changed = observed.objects[replace(ref, namespace="changing")]
        assert without_identity(changed) == without_identity(live)


def without_identity(live: Any) -> Any:
    """Without what the server writes anew for every object, and the model's uid."""
    if isinstance(live, dict):
        kept = {key: without_identity(value) for key, value in live.items() if key not in SERVERS_OWN}
        return {key: value for key, value in kept.items() if value != {}}
    return [without_identity(item) for item in live] if isinstance(live, list) else live


SERVERS_OWN = {
    "managedFields",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "namespace",
    "annotations",
    "status",
    "clusterIP",
    "clusterIPs",
    "secretKeyRef",
    "pagoda.dev/template",
    "replicas",
}

EDITS: list[tuple[ObjectRef, dict[str, Any]]] = [
    (ObjectRef("NetworkPolicy", "", "pagoda-default-deny"), {"spec": {"ingress": [{}]}}),
    (ObjectRef("NetworkPolicy", "", "pagoda-router-to-worker"), {"spec": {"ingress": [{}]}}),
    (ObjectRef("Role", "", "pagoda-router"), {"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
    (ObjectRef("Service", "", "pagoda-router"), {"spec": {"selector": {"app.kubernetes.io/component": "worker"}}}),
    (ObjectRef("PodDisruptionBudget", "", "chat-default"), {"spec": {"maxUnavailable": 9}}),
    (ObjectRef("Deployment", "", "chat-default"), {"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}),
    (ObjectRef("Deployment", "", "pagoda-router"), {"spec": {"replicas": 7}}),
    (ObjectRef("ServiceAccount", "", "pagoda-worker"), {"automountServiceAccountToken": True}),
    (ObjectRef("PersistentVolumeClaim", "", "chat-cache"), {"metadata": {"labels": {"pagoda.dev/model": "other"}}}),
    (ObjectRef("Service", "", "chat-default"), {"metadata": {"ownerReferences": []}}),
]


@pytest.mark.parametrize(("ref", "edit"), EDITS, ids=lambda value: str(value) if isinstance(value, ObjectRef) else "")
def test_an_edit_by_hand_is_undone_in_one_step(ref: ObjectRef, edit: dict[str, Any], api_server: ApiServer) -> None:
    namespace = "edited"
    wanted = document(namespace, EVERYTHING)
    observed = in_namespace(api_server, namespace, [EVERYTHING])
    ref = replace(ref, namespace=namespace)
    edited = api_server.patch(ALL_KINDS[ref.kind].path(namespace, ref.name), edit)
    assert edited.status_code == 200, edited.text
    changed = world(*{**observed.objects, ref: edited.json()}.values())
    change = plan([wanted], changed, CLUSTER)
    assert [ref_of(each) for each in change.apply] == [ref]
    assert plan([wanted], carry_out(api_server, change, changed), CLUSTER).reasons == ()


ADDITIONS: list[tuple[ObjectRef, dict[str, Any]]] = [
    (ObjectRef("Deployment", "", "chat-default"), {"metadata": {"annotations": {"note": "mine"}, "labels": {"team": "mine"}}}),
    (ObjectRef("Deployment", "", "chat-default"), {"spec": {"paused": True, "minReadySeconds": 5}}),
    (ObjectRef("Service", "", "pagoda-router"), {"spec": {"sessionAffinity": "ClientIP"}}),
    (ObjectRef("Deployment", "", "chat-canary"), {"spec": {"replicas": 4}}),
]


@pytest.mark.parametrize(("ref", "edit"), ADDITIONS, ids=lambda value: str(value) if isinstance(value, ObjectRef) else "")
def test_what_others_add_is_left_and_not_fought_over(ref: ObjectRef, edit: dict[str, Any], api_server: ApiServer) -> None:
    observed = in_namespace(api_server, "added", [EVERYTHING])
    added = api_server.patch(ALL_KINDS[ref.kind].path("added", ref.name), edit)
    assert added.status_code == 200, added.text
    changed = world(*{**observed.objects, replace(ref, namespace="added"): added.json()}.values())
    assert plan([document("added", EVERYTHING)], changed, CLUSTER).reasons == ()


def test_a_variable_that_somebody_adds_to_a_container_is_left(api_server: ApiServer) -> None:
    observed = in_namespace(api_server, "variable", [EVERYTHING])
    ref = ObjectRef("Deployment", "variable", "chat-default")
    extra = {"name": "worker", "env": [{"name": "DEBUG", "value": "1"}]}
    mine = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": ref.name, "namespace": ref.namespace}}
    added = api_server.apply(mine | {"spec": {"template": {"spec": {"containers": [extra]}}}}, "somebody")
    changed = world(*{**observed.objects, ref: added}.values())
    assert plan([document("variable", EVERYTHING)], changed, CLUSTER).reasons == ()


def test_a_cache_grows_and_never_shrinks(api_server: ApiServer) -> None:
    def sized(size: str) -> dict[str, Any]:
        return {"model": {"source": "hf://org/name", "cache": {"size": size}}}

    observed = in_namespace(api_server, "growing", [sized("2Gi")])
    ref = ObjectRef("PersistentVolumeClaim", "growing", "chat-cache")
    bound = {**observed.objects, ref: observed.objects[ref] | {"status": {"phase": "Bound"}}}
    assert plan([document("growing", sized("1Gi"))], world(*bound.values()), CLUSTER).reasons == ()
    (grown,) = plan([document("growing", sized("3Gi"))], world(*bound.values()), CLUSTER).apply
    assert grown["spec"]["resources"]["requests"]["storage"] == "3Gi"


@pytest.mark.parametrize("name", SPECS)
def test_every_pod_is_admitted_to_a_restricted_namespace(name: str, api_server: ApiServer) -> None:
    namespace = f"restricted-{name}"
    api_server.namespace(namespace, enforce="restricted", warn="restricted")
    for each in plan([document(namespace, SPECS[name])], world(), CLUSTER).apply:
        api_server.apply(each)  # a warning of the server would fail here
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            metadata = template["metadata"] | {"name": "pod", "namespace": namespace}
            answer = api_server.tried({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
            assert answer.status_code == 201, answer.text
            if name == "everything" and LABEL_VARIANT in metadata["labels"]:
                assert answer.json()["status"]["qosClass"] == "Guaranteed"
