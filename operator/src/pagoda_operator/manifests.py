"""From a spec to Kubernetes objects, without I/O: routers, workers and what guards them. The pods themselves are in `pods.py`.

Called by `plan`. The local executor runs the same pod templates as processes; it rewrites ports, hosts and paths, which therefore
come only from PAGODA_* environment variables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagoda_operator.observed import LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_MODEL, LABEL_PART_OF, LABEL_VARIANT, MANAGED_BY
from pagoda_operator.pods import (
    GRPC_PORT,
    HTTP_PORT,
    INTERNAL_PORT,
    WORKER_HTTP_PORT,
    router_pod,
    template_with_hash,
    worker_pod,
)
from pagoda_operator.spec import InferenceModel, Variant
from pagoda_operator.validate import API_VERSION, KIND

ROUTER_NAME = "pagoda-router"
WORKER_ACCOUNT = "pagoda-worker"
PART_OF = "pagoda"
API_PORT = 8000

Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the installation decides, the same for every model."""

    version: str
    """Tag of the images and value of app.kubernetes.io/version."""
    image_prefix: str = "pagoda"
    """Images are {prefix}/router:{version} and {prefix}/worker:{version}."""
    router_replicas: int = 1
    drain_s: int = 30
    """How long routers and workers finish what they have after SIGTERM."""
    host_paths: bool = False
    """Mount a file:// source from the node. Off: the pod sees only its own files (locally: the machine's)."""


def worker_name(model_name: str, variant_name: str) -> str:
    return f"{model_name}-{variant_name}"


def namespace_objects(namespace: str, settings: Settings) -> list[Object]:
    """The router, the account without rights that workers run under, and the network policies: shared by all models of a namespace."""
    labels = _labels(ROUTER_NAME, "router", settings)
    selector = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "router"}
    pod = router_pod(image=f"{settings.image_prefix}/router:{settings.version}", account=ROUTER_NAME, drain_s=settings.drain_s)
    ports = [
        {"name": "http", "port": API_PORT, "targetPort": "http", "protocol": "TCP"},
        {"name": "internal", "port": INTERNAL_PORT, "targetPort": "internal", "protocol": "TCP"},
    ]
    return [
        _service_account(namespace, ROUTER_NAME, labels),
        _service_account(namespace, WORKER_ACCOUNT, _labels(WORKER_ACCOUNT, "worker", settings)),
        *_network_policies(namespace, settings),
        _object("v1", "Service", namespace, ROUTER_NAME, labels, {"type": "ClusterIP", "selector": selector, "ports": ports}),
        _disruption_budget(namespace, ROUTER_NAME, labels, selector),
        _deployment(namespace, ROUTER_NAME, labels, selector, settings.router_replicas, pod),
    ]


def model_objects(model: InferenceModel, settings: Settings) -> list[Object]:
    """What one model owns: a worker Deployment, headless Service and PodDisruptionBudget per variant."""
    owner = _owner(model)
    return [
        document | {"metadata": document["metadata"] | owner}
        for variant in model.variants
        for document in _variant_objects(model, variant, settings)
    ]


def _variant_objects(model: InferenceModel, variant: Variant, settings: Settings) -> list[Object]:
    name = worker_name(model.name, variant.name)
    selector = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "worker", LABEL_MODEL: model.name, LABEL_VARIANT: variant.name}
    labels = _labels(model.name, "worker", settings) | selector
    image = f"{settings.image_prefix}/worker:{settings.version}"
    pod = worker_pod(model, variant, image=image, account=WORKER_ACCOUNT, drain_s=settings.drain_s, host_paths=settings.host_paths)
    ports = [
        {"name": "grpc", "port": GRPC_PORT, "targetPort": "grpc", "protocol": "TCP"},
        {"name": "http", "port": WORKER_HTTP_PORT, "targetPort": "http", "protocol": "TCP"},
    ]
    # Not-ready workers are published too: the router holds a session to each and decides by the session's own state.
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    return [
        _object("v1", "Service", model.namespace, name, labels, service),
        _disruption_budget(model.namespace, name, labels, selector),
        _deployment(model.namespace, name, labels, selector, variant.scaling.min, pod),
    ]


def _deployment(namespace: str, name: str, labels: Mapping[str, str], selector: Mapping[str, str], replicas: int, pod: Object) -> Object:
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": dict(selector)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template_with_hash(labels, pod),
    }
    return _object("apps/v1", "Deployment", namespace, name, labels, spec)


def _disruption_budget(namespace: str, name: str, labels: Mapping[str, str], selector: Mapping[str, str]) -> Object:
    # One at a time. With a single replica a node can still be drained, which minAvailable: 1 would forbid for ever.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": dict(selector)}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    return _object("policy/v1", "PodDisruptionBudget", namespace, name, labels, spec)


def _service_account(namespace: str, name: str, labels: Mapping[str, str]) -> Object:
    account = _object("v1", "ServiceAccount", namespace, name, labels, None)
    return account | {"automountServiceAccountToken": False}


def _network_policies(namespace: str, settings: Settings) -> list[Object]:
    """Nothing by default, then each flow by name. Scraping and the operator's poll come from other namespaces, so those ports are
    open to pods anywhere in the cluster; what they show needs a token or is without secrets."""
    router = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "router"}
    worker = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: "worker"}
    everywhere: list[Object] = [{"namespaceSelector": {}}]
    dns = {"to": everywhere, "ports": [_port(53, "UDP"), _port(53, "TCP")]}

    def policy(flow: str, pods: Mapping[str, str], **rules: Any) -> Object:
        types = [name for name, key in (("Ingress", "ingress"), ("Egress", "egress")) if key in rules]
        spec = {"podSelector": {"matchLabels": dict(pods)}, "policyTypes": types} | {key: rule for key, rule in rules.items() if rule}
        return _object("networking.k8s.io/v1", "NetworkPolicy", namespace, f"pagoda-{flow}", _labels("pagoda", "network", settings), spec)

    return [
        policy("default-deny", {LABEL_MANAGED_BY: MANAGED_BY}, ingress=[], egress=[]),
        policy("clients-to-router", router, ingress=[{"ports": [_port(HTTP_PORT)]}]),
        policy("operator-to-router", router, ingress=[{"from": everywhere, "ports": [_port(INTERNAL_PORT)]}]),
        policy("router-egress", router, egress=[{"to": [{"podSelector": {"matchLabels": worker}}], "ports": [_port(GRPC_PORT)]}, dns]),
        policy("router-to-worker", worker, ingress=[{"from": [{"podSelector": {"matchLabels": router}}], "ports": [_port(GRPC_PORT)]}]),
        policy("metrics-of-worker", worker, ingress=[{"from": everywhere, "ports": [_port(WORKER_HTTP_PORT)]}]),
    ]


def _port(port: int, protocol: str = "TCP") -> Object:
    return {"port": port, "protocol": protocol}


def _labels(instance: str, component: str, settings: Settings) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": f"pagoda-{component}",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/version": settings.version,
        LABEL_COMPONENT: component,
        LABEL_PART_OF: PART_OF,
        LABEL_MANAGED_BY: MANAGED_BY,
    }


def _owner(model: InferenceModel) -> Object:
    """Kubernetes deletes children with their owner, also while no operator runs: no finalizer is needed."""
    if not model.uid:
        return {}
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": model.name, "uid": model.uid, "controller": True, "blockOwnerDeletion": False}
    return {"ownerReferences": [owner]}


def _object(api_version: str, kind: str, namespace: str, name: str, labels: Mapping[str, str], spec: Object | None) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels)}
    document: Object = {"apiVersion": api_version, "kind": kind, "metadata": metadata}
    return document if spec is None else document | {"spec": spec}
