"""The charts as helm renders them, without a cluster. What they do in one is in test_charts_release.py and in e2e."""

import ast
import base64
import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from helm import CHARTS, NAMESPACE, ROOT, HelmFailed, Object, helm, one, plain_environment, render, render_text, skip_without_helm

skip_without_helm()

ROUTE = {"namespace": "models", "host": "models.example.org"}
EVERYTHING: Object = {
    "image": {"registry": "registry.example:5000/team", "pullSecrets": ["pull"]},
    "operator": {"priorityClassName": "system-cluster-critical", "nodeSelector": {"pool": "system"}},
    "router": {"database": {"secret": "pagoda-database"}, "redis": {"secret": "pagoda-redis"}},
    "metrics": {"serviceMonitor": True, "rules": True, "dashboards": True},
    "ingress": {"className": "nginx", "routes": [{**ROUTE, "tlsSecret": "models-tls"}]},
    "httpRoutes": [{**ROUTE, "gateway": "public", "gatewayNamespace": "gateways", "listener": "https"}],
}


def values_of(chart: str = "pagoda") -> Object:
    loaded: Object = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    return loaded


def with_value(path: str, value: Any) -> Object:
    nested: Any = value
    for key in reversed(path.split(".")):
        nested = {key: nested}
    assert isinstance(nested, dict)
    return nested


@pytest.mark.parametrize("chart", ["pagoda", "pagoda-crds"])
def test_helm_lint_has_nothing_against_it(chart: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHARTS / chart))


# The pod.


def test_the_operator_passes_the_restricted_profile() -> None:
    pod = one(render(), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert [volume for volume in pod["volumes"] if set(volume) - {"name", "emptyDir"}] == []
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_two_replicas_that_a_drain_takes_one_after_the_other() -> None:
    objects = render()
    deployment, budget = one(objects, "Deployment"), one(objects, "PodDisruptionBudget")
    template = deployment["spec"]["template"]
    assert deployment["spec"]["replicas"] == 2
    assert budget["spec"]["maxUnavailable"] == 1
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert budget["spec"]["selector"]["matchLabels"] == selector
    assert selector.items() <= template["metadata"]["labels"].items()
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == selector


def test_probes_metrics_service_and_monitor_find_their_ports() -> None:
    objects = render({"metrics": {"serviceMonitor": True}})
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"health": 8080, "metrics": 8081}
    probes = {name: container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/ready",
        "readinessProbe": "/ready",
        "livenessProbe": "/health",
    }
    assert {probe["port"] for probe in probes.values()} == {"health"}
    service, monitor = one(objects, "Service"), one(objects, "ServiceMonitor")
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8081, "metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == port["name"]


@pytest.mark.parametrize(
    ("values", "image"),
    [
        ({}, "pagoda/operator:0.1.0"),
        ({"image": {"registry": "registry.example:5000/team"}}, "registry.example:5000/team/pagoda/operator:0.1.0"),
        ({"image": {"registry": "registry.example/", "tag": "2.0"}}, "registry.example/pagoda/operator:2.0"),
        ({"operator": {"image": "elsewhere/op@sha256:00"}, "image": {"tag": "2.0"}}, "elsewhere/op@sha256:00"),
    ],
    ids=str,
)
def test_the_image_is_registry_name_and_tag_unless_given_whole(values: Object, image: str) -> None:
    (container,) = one(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image


PARSED = """
import json, os, sys
from pagoda_operator.settings import parse_settings
settings = parse_settings(json.load(sys.stdin))
json.dump({name: getattr(settings, name) for name in type(settings).__dataclass_fields__ if name != "master_key"}, sys.stdout)
"""


def parsed(values: Object) -> Object:
    """The operator's own reading of the variables that the chart gives it."""
    given = plain_environment(one(render(values), "Deployment"))
    given |= {"PAGODA_POD_NAME": "pod", "PAGODA_POD_NAMESPACE": NAMESPACE, "PAGODA_MASTER_KEY": "0123456789abcdef"}
    done = subprocess.run([sys.executable, "-c", PARSED], input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: Object = json.loads(done.stdout)
    return found


def test_the_operator_understands_every_variable_that_the_chart_sets() -> None:
    values = {
        "image": {"registry": "registry.example", "tag": "9.9", "pullPolicy": "Always", "pullSecrets": ["one", "two"]},
        "watchNamespaces": ["a", "b"],
        "operator": {"leaseSeconds": 20, "pollSeconds": 2.5, "logLevel": "DEBUG"},
        "router": {
            "image": "r:1",
            "replicas": 0,
            "lingerSeconds": 3,
            "corsOrigins": ["https://a.example", "https://b.example"],
            "settings": {"maxBodyBytes": 20_971_520, "retryShare": 0.05, "waves": True},
            "database": {"secret": "pagoda-database", "port": 5433},
            "redis": {"secret": "pagoda-redis", "port": 6380},
        },
        "worker": {"image": "w:1"},
        "drainSeconds": 7,
        "tracing": {"otlpEndpoint": "http://collector.monitoring:4318"},
        "hostPaths": True,
        "networkPolicy": {"apiServerCidrs": ["10.0.0.1/32"], "metricsNamespaces": ["monitoring"]},
        "metrics": {"runbooks": "https://wiki.example/pagoda"},
    }
    found = parsed(values)
    expected = {
        "version": "9.9",
        "image_registry": "registry.example",
        "image_pull_policy": "Always",
        "image_pull_secrets": ["one", "two"],
        "namespaces": ["a", "b"],
        "lease_duration_s": 20.0,
        "poll_s": 2.5,
        "log_level": "DEBUG",
        "router_image": "r:1",
        "router_replicas": 0,
        "worker_image": "w:1",
        "linger_s": 3,
        "router_settings": [["PAGODA_MAX_BODY_BYTES", "20971520"], ["PAGODA_RETRY_SHARE", "0.05"], ["PAGODA_WAVES", "on"]],
        "database_secret": "pagoda-database",
        "database_port": 5433,
        "redis_secret": "pagoda-redis",
        "redis_port": 6380,
        "drain_s": 7,
        "otlp_endpoint": "http://collector.monitoring:4318",
        "cors_origins": ["https://a.example", "https://b.example"],
        "host_paths": True,
        "api_server_cidrs": ["10.0.0.1/32"],
        "metrics_namespaces": ["monitoring"],
        "runbooks": "https://wiki.example/pagoda",
        "canary": [NAMESPACE, "pagoda-canary"],
        "health_port": 8080,
        "metrics_port": 8081,
        "lease_name": "pagoda-operator",
        "pod_name": "pod",
        "pod_namespace": NAMESPACE,
    }
    assert found == expected


def test_without_values_the_operator_gets_its_own_defaults() -> None:
    found = parsed({})
    assert (found["namespaces"], found["linger_s"], found["drain_s"], found["router_replicas"]) == ([], 5, 120, 2)
    assert found["host_paths"] is False


def test_the_canary_is_labelled_so_that_nobody_serves_it() -> None:
    canary = one(render(), "InferenceModel")
    assert canary["metadata"]["name"] == "pagoda-canary"
    assert canary["metadata"]["labels"]["pagoda.dev/canary"] == "true"
    assert canary["spec"] == {"model": {"source": "builtin://tiny"}}


# The master key.


def test_the_master_key_is_random_and_long() -> None:
    keys = {base64.b64decode(one(render({}, *extra), "Secret")["data"]["master-key"]) for extra in ((), ("--skip-tests",))}
    assert len(keys) == 2
    assert all(len(key) == 48 for key in keys)


def test_an_existing_secret_is_used_instead_and_none_is_made() -> None:
    objects = render({"masterKey": {"existingSecret": "mine"}})
    assert [each for each in objects if each["kind"] == "Secret"] == []
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    (variable,) = [each for each in container["env"] if each["name"] == "PAGODA_MASTER_KEY"]
    assert variable["valueFrom"]["secretKeyRef"] == {"name": "mine", "key": "master-key"}


# Rights.


def rights_table() -> tuple[dict[tuple[str, str], tuple[str, ...]], dict[tuple[str, str], tuple[str, ...]]]:
    """The literal tables under which the operator's own tests run: read, as components never import each other."""
    tree = ast.parse((ROOT / "operator/tests/rights.py").read_text())
    names: dict[str, Any] = {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if isinstance(target, ast.Name) and target.id in ("CHILDREN", "SEE", "TABLE", "LEASES"):
            assert isinstance(statement, ast.Assign | ast.AnnAssign)
            assert statement.value is not None
            names[target.id] = eval(compile(ast.Expression(statement.value), "rights", "eval"), {}, dict(names))
    return names["TABLE"], names["LEASES"]


def table_of(role: Object) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def expected(*without: str) -> dict[tuple[str, str], set[str]]:
    return {key: set(verbs) for key, verbs in rights_table()[0].items() if key[1] not in without}


def test_cluster_wide_the_rights_are_exactly_those_that_the_operator_is_tested_with() -> None:
    objects = render({"metrics": {"serviceMonitor": True, "rules": True}})
    assert table_of(one(objects, "ClusterRole")) == expected()
    assert table_of(one(objects, "Role", "pagoda-operator-lease")) == {key: set(verbs) for key, verbs in rights_table()[1].items()}
    assert [each["metadata"]["name"] for each in objects if each["kind"] == "Role"] == ["pagoda-operator-lease"]


def test_monitors_and_rules_are_touched_only_when_wanted() -> None:
    assert table_of(one(render(), "ClusterRole")) == expected("servicemonitors", "prometheusrules")
    assert table_of(one(render({"metrics": {"rules": True}}), "ClusterRole")) == expected("servicemonitors")


def test_secrets_are_only_ever_created() -> None:
    for values in ({}, {"watchNamespaces": ["a"]}):
        for role in (each for each in render(values) if each["kind"] in ("Role", "ClusterRole")):
            assert table_of(role).get(("", "secrets"), {"create"}) == {"create"}
            assert not [rule for rule in role["rules"] if "*" in str(rule)]


def test_with_named_namespaces_nothing_is_cluster_wide() -> None:
    objects = render({"watchNamespaces": ["a", "b"]})
    assert [each for each in objects if each["kind"].startswith("Cluster")] == []
    roles = {
        each["metadata"]["namespace"]: table_of(each)
        for each in objects
        if each["metadata"]["name"] == "pagoda-operator" and each["kind"] == "Role"
    }
    canary_only = {("pagoda.dev", "inferencemodels"): {"get", "list", "watch"}, ("pagoda.dev", "inferencemodels/status"): {"patch"}}
    assert roles == {
        "a": expected("nodes", "servicemonitors", "prometheusrules"),
        "b": expected("nodes", "servicemonitors", "prometheusrules"),
        NAMESPACE: canary_only,
    }


def test_the_operators_own_namespace_may_have_models_too() -> None:
    objects = render({"watchNamespaces": [NAMESPACE]})
    assert table_of(one(objects, "Role", "pagoda-operator")) == expected("nodes", "servicemonitors", "prometheusrules")


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a", "b"]}], ids=["cluster", "namespaces"])
def test_every_binding_joins_the_operators_account_with_a_role_that_is_there(values: Object) -> None:
    objects = render(values)
    account = one(objects, "ServiceAccount")["metadata"]
    roles = {
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects if each["kind"].endswith("Role")
    }
    bound = set()
    for binding in (each for each in objects if each["kind"].endswith("RoleBinding")):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]
        bound.add((binding["roleRef"]["kind"], binding["metadata"].get("namespace"), binding["roleRef"]["name"]))
    assert bound == roles
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]


# Access from outside.


def test_an_ingress_leads_a_host_to_the_router_of_a_namespace() -> None:
    routes = [{**ROUTE, "tlsSecret": "models-tls"}, {"namespace": "models", "host": "*.example.net"}]
    objects = render({"ingress": {"className": "nginx", "routes": routes}})
    first, second = one(objects, "Ingress", "pagoda-models.example.org"), one(objects, "Ingress", "pagoda-any.example.net")
    assert first["metadata"]["namespace"] == "models"
    assert first["spec"]["ingressClassName"] == "nginx"
    assert first["spec"]["tls"] == [{"hosts": ["models.example.org"], "secretName": "models-tls"}]
    (path,) = first["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"] == {"service": {"name": "pagoda-router", "port": {"name": "http"}}}
    assert "tls" not in second["spec"]
    assert second["spec"]["rules"][0]["host"] == "*.example.net"


def test_streams_through_an_ingress_are_neither_buffered_nor_cut() -> None:
    annotations = one(render({"ingress": {"routes": [ROUTE]}}), "Ingress")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 3600


def test_an_http_route_hangs_on_a_gateway_and_has_no_time_limit() -> None:
    full = {**ROUTE, "gateway": "public", "gatewayNamespace": "gateways", "listener": "https"}
    route = one(render({"httpRoutes": [full]}), "HTTPRoute")
    assert route["metadata"]["namespace"] == "models"
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways", "sectionName": "https"}]
    assert route["spec"]["hostnames"] == ["models.example.org"]
    (rule,) = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "pagoda-router", "port": 8000}]
    assert rule["timeouts"] == {"request": "0s"}
    least = one(render({"httpRoutes": [{**ROUTE, "gateway": "public"}]}), "HTTPRoute")
    assert least["spec"]["parentRefs"] == [{"name": "public"}]


# Refusals.

REFUSED = [
    ("operator.replicas", 0, "/operator/replicas|minimum"),
    ("operator.leaseSeconds", 1, "leaseSeconds|minimum"),
    ("operator.logLevel", "LOUD", "logLevel|one of"),
    ("operator.replica", 2, "replica|additional"),
    ("operator.resources", {"request": {"cpu": 1}}, "request|additional"),
    ("image.registry", "https://registry.example", "registry|pattern"),
    ("image.pullPolicy", "Sometimes", "pullPolicy|one of"),
    ("watchNamespaces", ["A B"], "watchNamespaces|pattern"),
    ("watchNamespaces", ["a", "a"], "watchNamespaces|equal"),
    ("router.replicas", -1, "replicas|minimum"),
    ("drainSeconds", "2m", "drainSeconds|integer"),
    ("hostPaths", "yes", "hostPaths|boolean"),
    ("networkPolicy.apiServerCidrs", ["10.0.0.1"], "apiServerCidrs|pattern"),
    ("ingress.routes", [{"namespace": "models"}], "routes|host"),
    ("ingress.routes", [{**ROUTE, "tls": True}], "routes|additional"),
    ("httpRoutes", [ROUTE], "httpRoutes|gateway"),
    ("nonsense", 1, "nonsense|additional"),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED, ids=lambda each: str(each))
def test_a_value_that_is_not_one_is_refused_by_its_name(path: str, value: Any, words: str) -> None:
    with pytest.raises(HelmFailed) as failed:
        render(with_value(path, value))
    for word in words.split("|"):
        assert word in str(failed.value)


MIXES: list[tuple[Object, str]] = [
    (
        {"router": {"redis": {"secret": "pagoda-redis"}}},
        "router.redis: limits belong to keys, and keys need router.database.secret: name it too",
    ),
    (
        {"masterKey": {"existingSecret": "pagoda-operator"}},
        (
            "masterKey.existingSecret: pagoda-operator is the release's own Secret, which goes away once a name is given: "
            "give yours another name"
        ),
    ),
    (
        {"operator": {"podLabels": {"app.kubernetes.io/name": "mine"}}},
        "operator.podLabels: app.kubernetes.io/name is a label of the chart's own: choose another",
    ),
    (
        {"watchNamespaces": ["a"], "ingress": {"routes": [ROUTE]}},
        "ingress.routes: models has no router, as watchNamespaces does not list it: add it there or remove the route",
    ),
    (
        {"watchNamespaces": ["a"], "httpRoutes": [{**ROUTE, "gateway": "public"}]},
        "httpRoutes: models has no router, as watchNamespaces does not list it: add it there or remove the route",
    ),
    (
        {"ingress": {"routes": [ROUTE, {**ROUTE, "namespace": "other"}]}},
        "ingress.routes: models.example.org is there twice: a host leads to one namespace",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), MIXES, ids=[sentence for _, sentence in MIXES])
def test_a_mix_that_cannot_work_is_refused_with_one_sentence(values: Object, sentence: str) -> None:
    with pytest.raises(HelmFailed) as failed:
        render(values)
    assert f"{sentence}\n" in str(failed.value)


# Values.


def leaves(values: Object, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value:
            yield from leaves(value, here)
        else:
            yield here, value


OTHER: Object = {
    "image.pullPolicy": "Always",
    "image.pullSecrets": ["other"],
    "watchNamespaces": ["models"],
    "operator.logLevel": "DEBUG",
    "operator.nodeSelector": {"pool": "other"},
    "operator.tolerations": [{"operator": "Exists"}],
    "operator.affinity": {"nodeAffinity": {}},
    "operator.podLabels": {"team": "blue"},
    "operator.podAnnotations": {"team": "blue"},
    "tracing.otlpEndpoint": "http://collector:4318",
    "router.corsOrigins": ["https://a.example"],
    "router.settings": {"waves": True},
    "networkPolicy.apiServerCidrs": ["10.0.0.1/32"],
    "networkPolicy.metricsNamespaces": ["monitoring"],
    "ingress.routes": [],
    "httpRoutes": [],
    "metrics.serviceMonitor": False,
    "metrics.rules": False,
    "metrics.dashboards": False,
    "metrics.runbooks": "https://wiki.example/pagoda",
    "masterKey.existingSecret": "mine",
}
"""Another value than the default's, where adding one, turning round or another word would not be a value."""


def another(path: str, value: Any) -> Any:
    if path in OTHER:
        return OTHER[path]
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "1" if path.startswith("ingress.annotations") or not path.endswith("memory") else "1Gi"
    raise AssertionError(f"OTHER lacks {path}")


def without_key(text: str) -> list[str]:
    return [line for line in text.splitlines() if "master-key: " not in line]


@pytest.mark.parametrize(("path", "value"), list(leaves(values_of())), ids=lambda each: each if isinstance(each, str) else "")
def test_every_value_changes_what_is_rendered(path: str, value: Any) -> None:
    base = copy.deepcopy(EVERYTHING)
    here: Any = base
    *parents, last = path.replace("nginx.ingress.kubernetes.io", "nginx-ingress").split(".")
    for key in parents:
        here = here.setdefault(key, {})
    last = last.replace("nginx-ingress", "nginx.ingress.kubernetes.io")
    here[last] = another(path, value)
    assert without_key(render_text(base)) != without_key(render_text(EVERYTHING))


def test_the_schema_takes_the_settings_of_routers_that_the_operator_knows() -> None:
    script = (
        "import json, sys; from pagoda_operator.render.router_settings import ROUTER_SETTINGS; json.dump(list(ROUTER_SETTINGS), sys.stdout)"
    )
    known = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    schema = json.loads((CHARTS / "pagoda" / "values.schema.json").read_text())
    assert sorted(schema["properties"]["router"]["properties"]["settings"]["properties"]) == sorted(known)
    page = (CHARTS.parent / "docs/install.md").read_text()
    assert [name for name in known if f"`{name}`" not in page] == []


def test_the_schema_names_every_value_and_no_other() -> None:
    def named(schema: Object, path: str = "") -> Iterator[str]:
        for key, part in schema["properties"].items():
            here = f"{path}.{key}" if path else key
            if "properties" in part and key not in ("resources", "settings"):
                assert part["additionalProperties"] is False, here
                yield from named(part, here)
            else:
                yield here

    def given(values: Object, path: str = "") -> Iterator[str]:
        for key, value in values.items():
            here = f"{path}.{key}" if path else key
            if isinstance(value, dict) and value and key not in ("resources", "annotations"):
                yield from given(value, here)
            else:
                yield here

    for chart in ("pagoda", "pagoda-crds"):
        schema = json.loads((CHARTS / chart / "values.schema.json").read_text())
        assert schema["additionalProperties"] is False
        assert set(named(schema)) == {*given(values_of(chart)), "global"}  # helm's own, of charts within charts


# All objects.


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a", "b"]}, EVERYTHING], ids=["default", "namespaces", "everything"])
def test_every_object_is_labelled_as_the_releases_and_there_are_no_hooks(values: Object) -> None:
    objects = render(values)
    for each in objects:
        metadata = each["metadata"]
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["labels"]["app.kubernetes.io/part-of"] == "pagoda"
        assert "helm.sh/hook" not in metadata.get("annotations", {})
        assert ("namespace" in metadata) != each["kind"].startswith("Cluster")
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)


def test_parts_that_are_not_asked_for_are_not_there() -> None:
    kinds = {each["kind"] for each in render({"networkPolicy": {"enabled": False}})}
    assert not kinds & {"Ingress", "HTTPRoute", "ServiceMonitor", "PrometheusRule", "ConfigMap", "NetworkPolicy"}


# Boards and alerts.


def test_alerts_are_shipped_as_they_are_written() -> None:
    shipped = one(render({"metrics": {"rules": True}}), "PrometheusRule")["spec"]
    assert shipped == yaml.safe_load((ROOT / "ops/rules/alerts.yaml").read_text())


def test_alerts_lead_to_pages_where_the_installation_has_them() -> None:
    shipped = one(render({"metrics": {"rules": True, "runbooks": "https://wiki.example/pagoda/"}}), "PrometheusRule")["spec"]
    links = {rule["annotations"]["runbook_url"] for group in shipped["groups"] for rule in group["rules"]}
    assert links == {f"https://wiki.example/pagoda/{link.rpartition('/')[2]}" for link in links}


def test_every_board_is_shipped_where_grafanas_sidecar_looks() -> None:
    maps = [each for each in render({"metrics": {"dashboards": True}}) if each["kind"] == "ConfigMap"]
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in maps} == {"1"}
    shipped = {name: json.loads(text) for each in maps for name, text in each["data"].items()}
    written = {f"pagoda-{path.name}": json.loads(path.read_text()) for path in (ROOT / "charts/pagoda/files/dashboards").glob("*.json")}
    assert shipped == written


# The definitions.


def test_the_crd_chart_renders_the_definitions_as_they_are() -> None:
    ours = [document for path in sorted((ROOT / "crds").glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]
    assert render(chart="pagoda-crds") == ours


def test_definitions_are_kept_by_an_uninstall_when_asked() -> None:
    for definition in render({"keep": True}, chart="pagoda-crds"):
        assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert definition in render(chart="pagoda-crds")


def test_charts_and_distributions_share_one_version() -> None:
    charts = [yaml.safe_load((CHARTS / name / "Chart.yaml").read_text()) for name in ("pagoda", "pagoda-crds")]
    (version,) = {chart[key] for chart in charts for key in ("version", "appVersion")}
    assert f'version = "{version}"' in (ROOT / "operator/pyproject.toml").read_text()
