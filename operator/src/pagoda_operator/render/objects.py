"""From a spec to Kubernetes objects, without I/O: routers, workers and what guards them. The pods themselves are in `pods.py`, who may
talk to whom in `policies.py`.

Called by `plan`. The local executor runs the same pod templates as processes; it rewrites ports, hosts and paths, which therefore
come only from PAGODA_* environment variables.
"""

from collections.abc import Mapping
from typing import Any

from pagoda_operator.labels import LABEL_BACKEND, LABEL_MODEL, LABEL_VARIANT, PARTS, common_labels
from pagoda_operator.manifest.quantities import format_bytes
from pagoda_operator.manifest.rules.backends import OWN_BACKEND
from pagoda_operator.manifest.source import Cache, is_fetched
from pagoda_operator.manifest.spec import InferenceModel, Variant
from pagoda_operator.manifest.validate import API_VERSION, KIND
from pagoda_operator.render.backend_pods import OPENAI_PORT, backend_pod
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.kinds import KINDS
from pagoda_operator.render.pods import (
    API_KEY_SECRET,
    GRPC_PORT,
    INTERNAL_PORT,
    ROUTER_STARTUP_S,
    WORKER_HTTP_PORT,
    WORKER_STARTUP_S,
    router_pod,
    template_with_hash,
    worker_pod,
)
from pagoda_operator.render.policies import fetch_policy, namespace_policies
from pagoda_operator.render.slo_rules import slo_groups
from pagoda_operator.render.weights import cache_name

ROUTER_NAME = "pagoda-router"
WORKER_ACCOUNT = "pagoda-worker"
API_PORT = 8000

Object = dict[str, Any]


def worker_name(model_name: str, variant_name: str) -> str:
    return f"{model_name}-{variant_name}"


def namespace_objects(namespace: str, settings: Settings) -> list[Object]:
    """The router with its rights, the account without any that workers run under, and the network policies: shared by all models of a
    namespace."""
    labels = common_labels(ROUTER_NAME, "router", settings.version)
    pod = router_pod(namespace, settings, account=ROUTER_NAME, selector=PARTS["router"])
    ports = [_service_port("http", API_PORT), _service_port("internal", INTERNAL_PORT)]
    service = {"type": "ClusterIP", "selector": dict(PARTS["router"]), "ports": ports}
    deployment = _deployment(labels, PARTS["router"], pod, strategy="surge", deadline_s=2 * ROUTER_STARTUP_S)
    if settings.router_replicas:
        deployment["replicas"] = settings.router_replicas
    return [
        _service_account(namespace, ROUTER_NAME, labels),
        _service_account(namespace, WORKER_ACCOUNT, common_labels(WORKER_ACCOUNT, "worker", settings.version)),
        *_router_rights(namespace, labels),
        *(
            _object("NetworkPolicy", namespace, name, common_labels("pagoda", "network", settings.version), spec=policy)
            for name, policy in namespace_policies(settings).items()
        ),
        _object("Service", namespace, ROUTER_NAME, labels, spec=service),
        _disruption_budget(namespace, ROUTER_NAME, labels, PARTS["router"]),
        *(_service_monitors(namespace, settings) if "ServiceMonitor" in settings.monitoring else ()),
        _object("Deployment", namespace, ROUTER_NAME, labels, spec=deployment),
    ]


def model_objects(model: InferenceModel, settings: Settings) -> list[Object]:
    """What one model owns: a worker Deployment, headless Service and PodDisruptionBudget per variant, and what fetching its weights
    takes, and alerts on what it promises. Deployments are as they are made first, with replicas."""
    documents = [document for variant in model.variants for document in _variant_objects(model, variant, settings)]
    labels = common_labels(model.name, "worker", settings.version) | {LABEL_MODEL: model.name}
    source = model.spec.model
    drafts = [variant.engine.speculative.draft or "" for variant in model.variants]
    if source.fetched or any(adapter.scheme == "hf" for adapter in model.spec.adapters) or any(map(is_fetched, drafts)):
        policy = fetch_policy(model.name, source)
        documents.append(_object("NetworkPolicy", model.namespace, f"{model.name}-fetch-egress", labels, spec=policy))
    if source.cache is not None and source.cache.size_bytes is not None:
        documents.append(_object("PersistentVolumeClaim", model.namespace, cache_name(model.name), labels, spec=_claim(source.cache)))
    if model.spec.slo is not None and "PrometheusRule" in settings.monitoring:
        groups = slo_groups(model.namespace, model.name, model.spec.slo, settings.runbooks)
        documents.append(_object("PrometheusRule", model.namespace, f"{model.name}-slo", labels, spec={"groups": groups}))
    owner = _owner(model)
    return [document | {"metadata": document["metadata"] | owner} for document in documents]


def _variant_objects(model: InferenceModel, variant: Variant, settings: Settings) -> list[Object]:
    name = worker_name(model.name, variant.name)
    selector = {**PARTS["worker"], LABEL_MODEL: model.name, LABEL_VARIANT: variant.name}
    labels = common_labels(model.name, "worker", settings.version) | selector
    if variant.engine.backend == OWN_BACKEND:
        ports = [_service_port("grpc", GRPC_PORT), _service_port("http", WORKER_HTTP_PORT)]
        pod = worker_pod(model, variant, settings, account=WORKER_ACCOUNT)
    else:
        # Endpoint slices have their Service's labels: that is how a router knows what to speak.
        labels |= {LABEL_BACKEND: variant.engine.backend}
        ports = [_service_port("openai", OPENAI_PORT)]
        pod = backend_pod(model, variant, settings, account=WORKER_ACCOUNT)
    # Not-ready workers are published too: the router holds a session to each and decides by the session's own state.
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": ports}
    deployment = _deployment(labels, selector, pod, strategy=model.spec.rollout.strategy, deadline_s=2 * WORKER_STARTUP_S)
    deployment["replicas"] = variant.scaling.at_first
    return [
        _object("Service", model.namespace, name, labels, spec=service),
        _disruption_budget(model.namespace, name, labels, selector),
        _object("Deployment", model.namespace, name, labels, spec=deployment),
    ]


def _deployment(labels: Mapping[str, str], selector: Mapping[str, str], pod: Object, *, strategy: str, deadline_s: int) -> Object:
    surge = {"maxSurge": 1, "maxUnavailable": 0} if strategy == "surge" else {"maxSurge": 0, "maxUnavailable": 1}
    return {
        "revisionHistoryLimit": 2,
        # After this long without a step the Deployment says so; nothing is undone. Twice what one start may take.
        "progressDeadlineSeconds": deadline_s,
        "selector": {"matchLabels": dict(selector)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
        "template": template_with_hash(labels, pod),
    }


def _disruption_budget(namespace: str, name: str, labels: Mapping[str, str], selector: Mapping[str, str]) -> Object:
    # One at a time. With a single replica a node can still be drained, which minAvailable: 1 would forbid for ever.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": dict(selector)}, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    return _object("PodDisruptionBudget", namespace, name, labels, spec=spec)


def _service_account(namespace: str, name: str, labels: Mapping[str, str]) -> Object:
    return _object("ServiceAccount", namespace, name, labels, automountServiceAccountToken=False)


def _router_rights(namespace: str, labels: Mapping[str, str]) -> list[Object]:
    """To see the models of its namespace and where their workers are, and nothing else."""
    seen = (("pagoda.dev", "inferencemodels"), ("discovery.k8s.io", "endpointslices"))
    rules = [{"apiGroups": [group], "resources": [plural], "verbs": ["get", "list", "watch"]} for group, plural in seen]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ROUTER_NAME}
    subject = {"kind": "ServiceAccount", "name": ROUTER_NAME, "namespace": namespace}
    return [
        _object("Role", namespace, ROUTER_NAME, labels, rules=rules),
        _object("RoleBinding", namespace, ROUTER_NAME, labels, roleRef=role, subjects=[subject]),
    ]


def _service_monitors(namespace: str, settings: Settings) -> list[Object]:
    """One for the routers, whose metrics take the API key, and one for all workers."""
    key = {"type": "Bearer", "credentials": {"name": API_KEY_SECRET[0], "key": API_KEY_SECRET[1]}}
    endpoints: Mapping[str, Object] = {"router": {"authorization": key}, "worker": {}}
    return [
        _object(
            "ServiceMonitor",
            namespace,
            f"pagoda-{part}",
            common_labels("pagoda", part, settings.version),
            spec={
                "selector": {"matchLabels": dict(PARTS[part])},
                "podTargetLabels": [LABEL_MODEL, LABEL_VARIANT] if part == "worker" else [],
                "endpoints": [{"port": "http", "path": "/metrics", "interval": "15s"} | more],
            },
        )
        for part, more in endpoints.items()
    ]


def _claim(cache: Cache) -> Object:
    storage_class = {} if cache.storage_class is None else {"storageClassName": cache.storage_class}
    size = {"requests": {"storage": format_bytes(cache.size_bytes or 0)}}
    return {"accessModes": [cache.access_mode], **storage_class, "resources": size}


def _service_port(name: str, port: int) -> Object:
    return {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}


def _owner(model: InferenceModel) -> Object:
    """Kubernetes deletes children with their owner, also while no operator runs: no finalizer is needed."""
    if not model.uid:
        return {}
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": model.name, "uid": model.uid, "controller": True, "blockOwnerDeletion": False}
    return {"ownerReferences": [owner]}


def _object(kind: str, namespace: str, name: str, labels: Mapping[str, str], **content: Any) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels)}
    return {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, **content}
