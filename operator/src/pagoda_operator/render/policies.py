"""Who may talk to whom: nothing by default, then each flow by name. NetworkPolicy specs, without I/O; called by `objects`.

clients → router 8000                  clients-to-router
operator → router 8001                 operator-to-router
router → worker 9000                   router-egress-to-worker, router-to-worker
router → API server                    router-egress-to-api-server
router → DNS                           router-egress-to-dns
router → collector of traces           router-egress-to-collector   (only where one is named; by its port, as its address is a name)
router → database, Redis               router-egress-to-database, -to-redis   (the same)
operator → worker 9001                 operator-to-worker
Prometheus → worker 9001               metrics-of-worker        (a router's metrics are on 8000, behind the API key)
worker → hub or S3 server, DNS         MODEL-fetch-egress       only for models whose weights are fetched
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from pagoda_operator.labels import LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY, PARTS
from pagoda_operator.manifest.source import ModelSource
from pagoda_operator.render.installation import SecretPort, Settings
from pagoda_operator.render.pods import GRPC_PORT, HTTP_PORT, INTERNAL_PORT, WORKER_HTTP_PORT

API_SERVER_PORTS = (443, 6443)
"""Of the Service, and of the server itself: which of the two a policy is compared with depends on the network plugin."""
FETCH_PORTS = (443, 80)
LABEL_NAMESPACE = "kubernetes.io/metadata.name"
OPERATOR_PODS = {"app.kubernetes.io/name": "pagoda-operator", "app.kubernetes.io/component": "operator"}
"""As the chart labels them."""

Object = dict[str, Any]
DNS_PORTS = (53, 5353)
"""A policy is compared with the port of the server's pod, behind its Service: 5353 on OpenShift and wherever DNS does not run as root."""
DNS: Object = {
    "to": [{"namespaceSelector": {}}],
    "ports": [{"port": port, "protocol": protocol} for port in DNS_PORTS for protocol in ("UDP", "TCP")],
}


def namespace_policies(settings: Settings) -> dict[str, Object]:
    """By name. A namespace's models share them."""
    router, worker = PARTS["router"], PARTS["worker"]
    operator = _operator(settings.operator_namespace)
    api_server = [{"ipBlock": {"cidr": cidr}} for cidr in settings.api_server_cidrs]
    # Written out empty, so that a rule that somebody adds by hand is a difference and goes away again.
    nothing: Object = {"podSelector": {"matchLabels": {LABEL_MANAGED_BY: MANAGED_BY}}, "policyTypes": ["Ingress", "Egress"]}
    return {
        "pagoda-default-deny": nothing | {"ingress": [], "egress": []},
        "pagoda-clients-to-router": _ingress(router, {"ports": _ports(HTTP_PORT)}),
        "pagoda-operator-to-router": _ingress(router, {"from": [operator], "ports": _ports(INTERNAL_PORT)}),
        "pagoda-router-egress-to-worker": _egress(router, {"to": [_pods(worker)], "ports": _ports(GRPC_PORT)}),
        "pagoda-router-egress-to-api-server": _egress(
            router, ({"to": api_server} if api_server else {}) | {"ports": _ports(*API_SERVER_PORTS)}
        ),
        "pagoda-router-egress-to-dns": _egress(router, DNS),
        **_to_collector(router, settings.otlp_endpoint),
        **_to_server(router, "database", settings.database),
        **_to_server(router, "redis", settings.redis),
        "pagoda-router-to-worker": _ingress(worker, {"from": [_pods(router)], "ports": _ports(GRPC_PORT)}),
        "pagoda-operator-to-worker": _ingress(worker, {"from": [operator], "ports": _ports(WORKER_HTTP_PORT)}),
        "pagoda-metrics-of-worker": _ingress(worker, _from(settings.metrics_namespaces, WORKER_HTTP_PORT)),
    }


def _to_collector(router: Mapping[str, str], endpoint: str | None) -> dict[str, Object]:
    """NOTE: a policy is compared with the port of the collector's pod, which its Service must not change."""
    if endpoint is None:
        return {}
    parts = urlsplit(endpoint)
    return {"pagoda-router-egress-to-collector": _egress(router, {"ports": _ports(parts.port or (443 if parts.scheme == "https" else 80))})}


def _to_server(router: Mapping[str, str], name: str, server: SecretPort | None) -> dict[str, Object]:
    return {} if server is None else {f"pagoda-router-egress-to-{name}": _egress(router, {"ports": _ports(server.port)})}


def fetch_policy(model_name: str, source: ModelSource) -> Object:
    """NOTE: a policy holds for whole pods: the worker beside the fetch step may reach the same ports."""
    ports = _ports(*dict.fromkeys((*FETCH_PORTS, *_endpoint_port(source))))
    return _egress({**PARTS["worker"], LABEL_MODEL: model_name}, {"ports": ports}, DNS)


def _endpoint_port(source: ModelSource) -> tuple[int, ...]:
    port = urlsplit(source.endpoint).port if source.endpoint else None
    return () if port is None else (port,)


def _ingress(pods: Mapping[str, str], *rules: Object) -> Object:
    return {"podSelector": {"matchLabels": dict(pods)}, "policyTypes": ["Ingress"], "ingress": list(rules)}


def _egress(pods: Mapping[str, str], *rules: Object) -> Object:
    return {"podSelector": {"matchLabels": dict(pods)}, "policyTypes": ["Egress"], "egress": list(rules)}


def _operator(namespace: str | None) -> Object:
    """Its pods, not whatever else runs in its namespace. None: it runs outside of the cluster's pods, in a test."""
    where: Object = {"matchLabels": {LABEL_NAMESPACE: namespace}} if namespace else {}
    return {"namespaceSelector": where, "podSelector": {"matchLabels": OPERATOR_PODS}}


def _from(namespaces: Iterable[str], port: int) -> Object:
    """Pods of these namespaces; of any, when none is named."""
    named: list[Object] = [{"namespaceSelector": {"matchLabels": {LABEL_NAMESPACE: name}}} for name in namespaces]
    return {"from": named or [{"namespaceSelector": {}}], "ports": _ports(port)}


def _pods(labels: Mapping[str, str]) -> Object:
    return {"podSelector": {"matchLabels": dict(labels)}}


def _ports(*ports: int) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]
