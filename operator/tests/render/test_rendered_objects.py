import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, TINY, inference_model
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.labels import LABEL_MANAGED_BY, LABEL_MODEL, LABEL_TEMPLATE, LABEL_VARIANT, MANAGED_BY
from pagoda_operator.manifest.spec import parse
from pagoda_operator.render.installation import SecretPort, Settings
from pagoda_operator.render.kinds import MONITORING
from pagoda_operator.render.objects import model_objects, namespace_objects

ROUTER_VARIABLES = {
    "PAGODA_BIND_HOST",
    "PAGODA_HTTP_PORT",
    "PAGODA_INTERNAL_PORT",
    "PAGODA_INTERNAL_TOKEN",
    "PAGODA_SESSION_TOKEN",
    "PAGODA_DISCOVERY",
    "PAGODA_NAMESPACE",
    "PAGODA_CACHE_DIR",
    "PAGODA_API_KEY",
    "PAGODA_MAX_BODY_BYTES",
    "PAGODA_MAX_QUEUE_TOKENS",
    "PAGODA_QUEUE_TIMEOUT_S",
    "PAGODA_LINGER_S",
    "PAGODA_DRAIN_S",
    "PAGODA_POD_NAME",
}
WORKER_VARIABLES = {
    "PAGODA_MODEL_NAME",
    "PAGODA_MODEL_SOURCE",
    "PAGODA_MODEL_REVISION",
    "PAGODA_MODEL_CACHE",
    "PAGODA_SELF_TEST",
    "PAGODA_ENGINE",
    "PAGODA_DEVICE",
    "PAGODA_BIND_HOST",
    "PAGODA_GRPC_PORT",
    "PAGODA_HTTP_PORT",
    "PAGODA_SESSION_TOKEN",
    "PAGODA_CPUS",
    "PAGODA_MEMORY_BYTES",
    "PAGODA_DRAIN_S",
    "PAGODA_STALL_S",
    "PAGODA_POD_NAME",
}
FETCH_VARIABLES = {
    "PAGODA_MODEL_SOURCE",
    "PAGODA_MODEL_REVISION",
    "PAGODA_MODEL_ENDPOINT",
    "PAGODA_MODEL_CACHE",
    "PAGODA_BIND_HOST",
    "PAGODA_HTTP_PORT",
    "PAGODA_HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
}
"""What the processes accept; any other PAGODA_* name stops them."""
FOLDERS = {"HOME", "HF_HOME", "XDG_CACHE_HOME"}


def objects(spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> list[dict[str, Any]]:
    return [*namespace_objects("default", settings), *model_objects(parse(inference_model("chat", spec)), settings)]


def of_kind(kind: str, name: str, spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    (found,) = (one for one in objects(spec, settings) if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def template(name: str, spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    found: dict[str, Any] = of_kind("Deployment", name, spec, settings)["spec"]["template"]
    return found


def container(name: str, spec: dict[str, Any] | None = None, settings: Settings = SETTINGS) -> dict[str, Any]:
    (found,) = template(name, spec, settings)["spec"]["containers"]
    return dict(found)


def environment(name: str, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    entries = container(name, spec)["env"]
    found = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in entries}
    assert len(found) == len(entries)
    return found


DEPLOYMENTS = ("pagoda-router", "chat-default")


def test_a_model_becomes_these_objects() -> None:
    assert sorted((one["kind"], one["metadata"]["name"]) for one in objects()) == [
        ("Deployment", "chat-default"),
        ("Deployment", "pagoda-router"),
        ("NetworkPolicy", "pagoda-clients-to-router"),
        ("NetworkPolicy", "pagoda-default-deny"),
        ("NetworkPolicy", "pagoda-metrics-of-worker"),
        ("NetworkPolicy", "pagoda-operator-to-router"),
        ("NetworkPolicy", "pagoda-operator-to-worker"),
        ("NetworkPolicy", "pagoda-router-egress-to-api-server"),
        ("NetworkPolicy", "pagoda-router-egress-to-dns"),
        ("NetworkPolicy", "pagoda-router-egress-to-worker"),
        ("NetworkPolicy", "pagoda-router-to-worker"),
        ("PodDisruptionBudget", "chat-default"),
        ("PodDisruptionBudget", "pagoda-router"),
        ("Role", "pagoda-router"),
        ("RoleBinding", "pagoda-router"),
        ("Service", "chat-default"),
        ("Service", "pagoda-router"),
        ("ServiceAccount", "pagoda-router"),
        ("ServiceAccount", "pagoda-worker"),
    ]


SOURCES: list[dict[str, Any]] = [
    {"source": TINY},
    {"source": "hf://org/name", "tokenSecretRef": {"name": "hub"}, "cache": {"size": "5Gi"}},
    {"source": "hf://org/name", "endpoint": "http://hub.example:8080"},
    {"source": "s3://bucket/name", "credentialsSecretRef": {"name": "s3"}, "cache": {"claim": "models"}},
    {"source": "pvc://models/name"},
]


@pytest.mark.parametrize("model", SOURCES, ids=lambda model: model["source"])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pod_satisfies_the_restricted_profile(name: str, model: dict[str, Any]) -> None:
    pod = template(name, {"model": model, "resources": {"gpus": 1}})["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any(pod.get(field) for field in ("hostNetwork", "hostPID", "hostIPC"))
    assert all(set(volume) - {"name"} in ({"emptyDir"}, {"persistentVolumeClaim"}) for volume in pod["volumes"])
    for one in [*pod["containers"], *pod.get("initContainers", ())]:
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_only_routers_hold_an_api_token_and_no_pod_gets_service_links(name: str) -> None:
    pod = template(name)["spec"]
    assert pod["automountServiceAccountToken"] is (name == "pagoda-router")
    assert pod["enableServiceLinks"] is False
    assert pod["shareProcessNamespace"] is True, "else a pod that is starting does not hear SIGTERM"


def test_a_router_may_look_at_models_and_endpoints_of_its_namespace_and_nothing_else() -> None:
    rules = of_kind("Role", "pagoda-router")["rules"]
    assert [(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in rules] == [
        (["pagoda.dev"], ["inferencemodels"], ["get", "list", "watch"]),
        (["discovery.k8s.io"], ["endpointslices"], ["get", "list", "watch"]),
    ]
    binding = of_kind("RoleBinding", "pagoda-router")
    assert binding["roleRef"]["name"] == "pagoda-router"
    assert [subject["name"] for subject in binding["subjects"]] == [template("pagoda-router")["spec"]["serviceAccountName"]]


@pytest.mark.parametrize("model", SOURCES, ids=lambda model: model["source"])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_volume_is_mounted_and_every_mount_has_a_volume(name: str, model: dict[str, Any]) -> None:
    pod = template(name, {"model": model})["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
    for one in [*pod["containers"], *pod.get("initContainers", ())]:
        assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
        assert "/tmp" in {mount["mountPath"] for mount in one["volumeMounts"]}
        variables = {entry["name"]: entry.get("value", "") for entry in one["env"]}
        assert all(variables[folder].startswith("/tmp") for folder in FOLDERS)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_may_drain_longer_than_its_process_needs_and_has_no_hook(name: str) -> None:
    pod = template(name, settings=replace(SETTINGS, linger_s=20, drain_s=90))["spec"]
    environment = environment_of(pod)
    assert environment["PAGODA_DRAIN_S"] == "90"
    assert pod["terminationGracePeriodSeconds"] > 90 + int(environment.get("PAGODA_LINGER_S", 0))
    assert "lifecycle" not in pod["containers"][0]


@pytest.mark.parametrize(
    ("fields", "variable", "value"),
    [
        ({"otlp_endpoint": "http://collector:4318"}, "PAGODA_OTLP_ENDPOINT", "http://collector:4318"),
        ({"cors_origins": ("https://a.example", "https://b.example")}, "PAGODA_CORS_ORIGINS", "https://a.example,https://b.example"),
    ],
)
def test_routers_and_nobody_else_are_told_where_traces_go_and_whose_pages_may_call(
    fields: dict[str, Any], variable: str, value: str
) -> None:
    settings = replace(SETTINGS, **fields)
    told = {name: environment_of(template(name, settings=settings)["spec"]).get(variable) for name in DEPLOYMENTS}
    assert told == {name: value if "router" in name else None for name in DEPLOYMENTS}
    assert variable not in environment_of(template(next(name for name in told if told[name]))["spec"])


def test_routers_and_nobody_else_get_the_urls_of_database_and_redis_from_secrets() -> None:
    settings = replace(SETTINGS, database=SecretPort("pagoda-database", 5432), redis=SecretPort("pagoda-redis", 6379))
    for name in DEPLOYMENTS:
        entries = template(name, settings=settings)["spec"]["containers"][0]["env"]
        given = {entry["name"]: entry.get("valueFrom") for entry in entries if entry["name"] in ("PAGODA_DATABASE", "PAGODA_REDIS")}
        wanted = {
            "PAGODA_DATABASE": {"secretKeyRef": {"name": "pagoda-database", "key": "url"}},
            "PAGODA_REDIS": {"secretKeyRef": {"name": "pagoda-redis", "key": "url"}},
        }
        assert given == (wanted if "router" in name else {})


def environment_of(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_ready_until_it_started_and_then_ready_and_health(name: str) -> None:
    probes = {probe: container(name)[probe]["httpGet"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert [probe["path"] for probe in probes.values()] == ["/ready", "/ready", "/health"]
    ports = {port["name"] for port in container(name)["ports"]}
    assert {probe["port"] for probe in probes.values()} <= ports


@pytest.mark.parametrize("model", SOURCES, ids=lambda model: model["source"])
def test_the_environment_has_only_names_that_the_process_knows(model: dict[str, Any]) -> None:
    spec = {"model": model, "resources": {"gpus": 1, "cpu": "8", "memory": "8Gi"}}
    for name, known in (("pagoda-router", ROUTER_VARIABLES), ("chat-default", WORKER_VARIABLES)):
        assert environment(name, spec).keys() <= known | FOLDERS
    for fetch in template("chat-default", spec)["spec"].get("initContainers", ()):
        assert {entry["name"] for entry in fetch["env"]} <= FETCH_VARIABLES | FOLDERS


def test_a_router_finds_models_and_workers_by_the_api_server_of_its_own_namespace() -> None:
    values = environment("pagoda-router")
    assert values["PAGODA_DISCOVERY"] == "kubernetes"
    assert values["PAGODA_NAMESPACE"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}


def test_routers_spread_over_nodes_and_zones() -> None:
    spread = template("pagoda-router")["spec"]["topologySpreadConstraints"]
    assert [one["topologyKey"] for one in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    labels = template("pagoda-router")["metadata"]["labels"]
    assert all(one["labelSelector"]["matchLabels"].items() <= labels.items() for one in spread)


def test_a_workers_pod_waits_for_the_routers_before_it_is_ready() -> None:
    assert template("chat-default")["spec"]["readinessGates"] == [{"conditionType": "pagoda.dev/routed"}]
    assert "readinessGates" not in template("pagoda-router")["spec"]


def test_the_worker_is_told_its_model_engine_and_bounds() -> None:
    spec = {
        "model": {"source": TINY},
        "engine": {
            "dtype": "bf16",
            "maxModelLen": 512,
            "longPrefillTokens": 0,
            "kvCache": {"blockSize": 32, "dtype": "fp8", "swap": "2Gi"},
        },
        "resources": {"cpu": "2500m", "memory": "4Gi"},
    }
    values = environment("chat-default", spec)
    assert values["PAGODA_MODEL_NAME"] == "chat"
    assert values["PAGODA_MODEL_SOURCE"] == TINY
    assert values["PAGODA_CPUS"] == "2"
    assert values["PAGODA_MEMORY_BYTES"] == str(4 * 2**30)
    assert values["PAGODA_SESSION_TOKEN"] == {"secretKeyRef": {"name": "pagoda-session", "key": "token"}}
    assert json.loads(values["PAGODA_ENGINE"]) == {
        "dtype": "bf16",
        "attention": "auto",
        "maxModelLen": 512,
        "longPrefillTokens": 0,
        "maxRunning": 256,
        "prefixCaching": True,
        "kvCache": {"blockSize": 32, "dtype": "fp8", "swap": 2 * 2**30},
    }


def test_a_worker_is_told_how_to_load_only_when_that_is_not_the_usual_way() -> None:
    """So that workers of a spec that says nothing are not replaced by a newer operator."""
    for load in ("lazy", "warm"):
        assert (
            json.loads(environment("chat-default", {"model": {"source": TINY}, "engine": {"load": load}})["PAGODA_ENGINE"])["load"] == load
        )
    assert "load" not in json.loads(environment("chat-default", {"model": {"source": TINY}, "engine": {"load": "eager"}})["PAGODA_ENGINE"])


def test_a_worker_without_bounds_is_told_none() -> None:
    values = environment("chat-default")
    assert {"PAGODA_CPUS", "PAGODA_MEMORY_BYTES"}.isdisjoint(values)
    assert "maxModelLen" not in json.loads(values["PAGODA_ENGINE"])
    assert container("chat-default")["resources"] == {}


@pytest.mark.parametrize(("gpus", "device", "limit"), [(0, "cpu", {}), (1, "cuda", {"amd.com/gpu": "1"})])
def test_gpus_decide_the_device_and_are_asked_for_by_their_name(gpus: int, device: str, limit: dict[str, str]) -> None:
    spec = {"model": {"source": TINY}, "resources": {"gpus": gpus, "gpuResource": "amd.com/gpu"}}
    assert environment("chat-default", spec)["PAGODA_DEVICE"] == device
    assert container("chat-default", spec)["resources"].get("limits", {}) == limit


def test_ranks_of_a_worker_are_one_pod_with_a_gpu_each_and_shared_memory() -> None:
    spec = {"model": {"source": TINY}, "engine": {"tensorParallel": 4}, "resources": {"gpus": 4}}
    found = container("chat-default", spec)
    assert found["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert json.loads(environment("chat-default", spec)["PAGODA_ENGINE"])["tensorParallel"] == 4
    assert {"name": "shm", "mountPath": "/dev/shm"} in found["volumeMounts"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in template("chat-default", spec)["spec"]["volumes"]


def test_the_router_may_run_without_an_api_key_but_not_without_tokens() -> None:
    secrets = {name: value["secretKeyRef"] for name, value in environment("pagoda-router").items() if "secretKeyRef" in value}
    assert {name: ref.get("optional", False) for name, ref in secrets.items()} == {
        "PAGODA_SESSION_TOKEN": False,
        "PAGODA_INTERNAL_TOKEN": False,
        "PAGODA_API_KEY": True,
    }


def test_a_folder_of_the_node_is_mounted_read_only_at_its_own_path() -> None:
    spec = {"model": {"source": "file:///models/chat"}}
    pod = template("chat-default", spec, replace(SETTINGS, host_paths=True))["spec"]
    assert {"name": "model", "hostPath": {"path": "/models/chat", "type": "Directory"}} in pod["volumes"]
    assert {"name": "model", "mountPath": "/models/chat", "readOnly": True} in pod["containers"][0]["volumeMounts"]


def test_a_rollout_never_goes_below_the_wanted_workers() -> None:
    spec = of_kind("Deployment", "chat-default", {"model": {"source": TINY}, "scaling": {"min": 3}})["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_rollout_without_room_for_one_more_replaces_one_at_a_time() -> None:
    spec = {"model": {"source": TINY}, "rollout": {"strategy": "replace"}}
    assert of_kind("Deployment", "chat-default", spec)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert of_kind("Deployment", "pagoda-router", spec)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_rollout_is_not_called_stuck_while_one_start_may_still_succeed(name: str) -> None:
    startup = container(name)["startupProbe"]
    deadline_s = of_kind("Deployment", name)["spec"]["progressDeadlineSeconds"]
    assert deadline_s > startup["periodSeconds"] * startup["failureThreshold"]


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_selectors_find_the_pods_and_survive_a_rollout(kind: str, name: str) -> None:
    selector = of_kind(kind, name)["spec"]["selector"]
    selector = selector.get("matchLabels", selector)
    assert selector.items() <= template(name)["metadata"]["labels"].items()
    assert LABEL_TEMPLATE not in selector
    assert "app.kubernetes.io/version" not in selector


def test_every_object_carries_the_common_labels() -> None:
    for one in objects():
        labels = one["metadata"]["labels"]
        assert labels[LABEL_MANAGED_BY] == MANAGED_BY
        parts = {"name", "instance", "component", "part-of", "managed-by", "version"}
        assert {f"app.kubernetes.io/{part}" for part in parts} <= labels.keys()


def test_what_a_model_owns_goes_with_it_and_what_it_shares_does_not() -> None:
    for one in objects():
        owners = one["metadata"].get("ownerReferences", [])
        if one["metadata"]["name"] == "chat-default":
            assert [owner["uid"] for owner in owners] == ["uid-default-chat"]
            assert one["metadata"]["labels"][LABEL_MODEL] == "chat"
            assert one["metadata"]["labels"][LABEL_VARIANT] == "default"
        else:
            assert owners == []


CHANGES_OF_THE_TEMPLATE = [
    {"engine": {"dtype": "fp32"}},
    {"engine": {"maxModelLen": 64}},
    {"engine": {"kvCache": {"blockSize": 32}}},
    {"resources": {"cpu": "3"}},
    {"resources": {"memory": "3Gi"}},
    {"resources": {"gpus": 1}},
    {"model": {"source": "builtin://tiny-draft"}},
    {"model": {"source": "hf://org/name"}},
    {"variants": [{"name": "default", "engine": {"dtype": "fp32"}}]},
]
CHANGES_OF_OTHER_THINGS = [
    {"scaling": {"min": 5}},
    {"servedNames": ["other"]},
    {"routing": {"maxQueueTokens": 1}},
    {"rollout": {"strategy": "replace"}},
    {"variants": [{"name": "canary"}, {"name": "default", "weight": 3}]},
]


@pytest.mark.parametrize("change", CHANGES_OF_THE_TEMPLATE, ids=json.dumps)
def test_a_change_of_the_pod_changes_the_template_hash(change: dict[str, Any]) -> None:
    assert hash_of(template("chat-default", {"model": {"source": TINY}} | change)) != hash_of(template("chat-default"))


@pytest.mark.parametrize("change", CHANGES_OF_OTHER_THINGS, ids=json.dumps)
def test_a_change_beside_the_pod_keeps_the_template_hash(change: dict[str, Any]) -> None:
    assert template("chat-default", {"model": {"source": TINY}} | change) == template("chat-default")


def hash_of(pod_template: dict[str, Any]) -> str:
    return str(pod_template["metadata"]["labels"][LABEL_TEMPLATE])


engines = st.fixed_dictionaries({}, optional={"dtype": st.sampled_from(["auto", "fp32"]), "maxRunning": st.integers(1, 3)})
specs = st.fixed_dictionaries({"model": st.just({"source": TINY})}, optional={"engine": engines, "scaling": st.just({"min": 2})})


@given(specs, specs)
def test_the_template_hash_differs_exactly_when_the_template_does(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = template("chat-default", one), template("chat-default", other)
    assert (hash_of(first) == hash_of(second)) == (first["spec"] == second["spec"])


def leaves(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value)
    else:
        yield node


def test_objects_are_plain_data_in_the_api_servers_types() -> None:
    spec = {"model": SOURCES[1], "resources": {"gpus": 1, "cpu": 2, "memory": "4Gi"}, "slo": {"ttft": "1s"}}
    for one in objects(spec, replace(SETTINGS, monitoring=frozenset(MONITORING), image_pull_secrets=("pull",))):
        assert json.loads(json.dumps(one)) == one
        assert all(isinstance(leaf, str | int | bool) for leaf in leaves(one))
    assert all(isinstance(entry.get("value", ""), str) for entry in container("chat-default")["env"])


def test_images_come_from_the_registry_and_may_be_named_whole() -> None:
    def images(**settings: Any) -> tuple[str, str]:
        names = [container(name, settings=replace(SETTINGS, **settings))["image"] for name in DEPLOYMENTS]
        return names[0], names[1]

    assert images() == ("pagoda/router:1.2.3", "pagoda/worker:1.2.3")
    assert images(image_registry="reg.example:5000/") == ("reg.example:5000/pagoda/router:1.2.3", "reg.example:5000/pagoda/worker:1.2.3")
    assert images(worker_image="x@sha256:1") == ("pagoda/router:1.2.3", "x@sha256:1")
    assert images(router_image="y:2", image_registry="reg") == ("y:2", "reg/pagoda/worker:1.2.3")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_images_are_pulled_as_the_installation_says(name: str) -> None:
    spec = {"model": {"source": "hf://org/name"}}
    pod = template(name, spec, replace(SETTINGS, image_pull_policy="Never", image_pull_secrets=("a", "b")))["spec"]
    assert pod["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert {one["imagePullPolicy"] for one in [*pod["containers"], *pod.get("initContainers", ())]} == {"Never"}
    assert "imagePullSecrets" not in template(name)["spec"]


def test_a_master_key_gives_each_namespace_tokens_of_its_own_and_a_new_one_new_names() -> None:
    one, other = replace(SETTINGS, master_key=b"k" * 32), replace(SETTINGS, master_key=b"l" * 32)
    names = {(settings.session_secret(ns), settings.internal_secret(ns)) for settings in (one, other) for ns in ("a", "b")}
    assert len(names) == 4
    assert all(session.startswith("pagoda-session-") and internal.startswith("pagoda-internal-") for session, internal in names)
    worker, router = (template(name, settings=one)["spec"]["containers"][0]["env"] for name in ("chat-default", "pagoda-router"))
    session = {"secretKeyRef": {"name": one.session_secret("default"), "key": "token"}}
    assert all({"name": "PAGODA_SESSION_TOKEN", "valueFrom": session} in env for env in (worker, router))
    assert hash_of(template("chat-default", settings=one)) != hash_of(template("chat-default", settings=other))
    assert "k" * 32 not in repr(one)


def test_each_variant_has_workers_of_its_own_with_its_overrides_in_them() -> None:
    spec = {
        "model": {"source": TINY},
        "engine": {"dtype": "fp32", "maxRunning": 7},
        "resources": {"cpu": "2"},
        "scaling": {"min": 2},
        "variants": [{"name": "default"}, {"name": "canary", "engine": {"dtype": "bf16"}, "scaling": {"min": 1}}],
    }
    engines = {name: json.loads(environment(f"chat-{name}", spec)["PAGODA_ENGINE"]) for name in ("default", "canary")}
    assert {name: (engine["dtype"], engine["maxRunning"]) for name, engine in engines.items()} == {
        "default": ("fp32", 7),
        "canary": ("bf16", 7),
    }
    assert container("chat-canary", spec)["resources"]["limits"] == {"cpu": "2"}
    assert [of_kind("Deployment", f"chat-{name}", spec)["spec"]["replicas"] for name in ("default", "canary")] == [2, 1]
    kinds = {kind: of_kind(kind, "chat-canary", spec) for kind in ("Service", "PodDisruptionBudget")}
    assert kinds["Service"]["spec"]["selector"][LABEL_VARIANT] == "canary"


def test_prometheus_is_told_of_routers_and_workers_where_it_can_be() -> None:
    assert not any(one["kind"] == "ServiceMonitor" for one in objects())
    settings = replace(SETTINGS, monitoring=frozenset(MONITORING))
    router, worker = (of_kind("ServiceMonitor", f"pagoda-{part}", settings=settings)["spec"] for part in ("router", "worker"))
    assert router["endpoints"][0]["authorization"]["credentials"] == {"name": "pagoda-api-key", "key": "key"}
    assert "authorization" not in worker["endpoints"][0]
    for monitor, service in ((router, "pagoda-router"), (worker, "chat-default")):
        found = of_kind("Service", service)
        assert monitor["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] in {port["name"] for port in found["spec"]["ports"]}


PROMISING = {"model": {"source": TINY}, "slo": {"ttft": "500ms", "objective": "99.9%"}}


def test_a_promise_becomes_rules_of_the_model_that_go_with_it() -> None:
    settings = replace(SETTINGS, monitoring=frozenset(MONITORING), runbooks="https://wiki.example/pagoda")
    rule = of_kind("PrometheusRule", "chat-slo", PROMISING, settings)
    assert rule["metadata"]["labels"][LABEL_MODEL] == "chat"
    assert rule["metadata"]["ownerReferences"][0]["name"] == "chat"
    alerts = [one for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one]
    assert {one["alert"] for one in alerts} == {"PagodaAvailabilityBurn", "PagodaTtftBurn"}
    assert {one["annotations"]["runbook_url"].rpartition("/")[0] for one in alerts} == {"https://wiki.example/pagoda"}


@pytest.mark.parametrize(
    ("spec", "monitoring"),
    [(None, MONITORING), (PROMISING, ()), (PROMISING, ("ServiceMonitor",))],
    ids=["nothing promised", "no Prometheus operator", "rules unknown"],
)
def test_without_a_promise_or_the_kind_there_are_no_rules(spec: dict[str, Any] | None, monitoring: tuple[str, ...]) -> None:
    assert not any(one["kind"] == "PrometheusRule" for one in objects(spec, replace(SETTINGS, monitoring=frozenset(monitoring))))
