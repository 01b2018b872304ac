"""CoreDNS as in every cluster: a Deployment behind the Service whose address kubelet gives to pods. Only the cluster's own names."""

from devcluster import images
from devcluster.components import DNS_SERVICE

NAMESPACE = "kube-system"
NAME = "coredns"

_COREFILE = """\
.:5353 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
    loadbalance
}
"""


def manifest() -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "List", "items": [*_account(), *_workload()]}


def _account() -> list[dict[str, object]]:
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    watch = ["list", "watch"]
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": watch},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"}
    return [
        _object("v1", "ServiceAccount", NAME),
        _object("rbac.authorization.k8s.io/v1", "ClusterRole", "system:coredns", namespace=None, rules=rules),
        _object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "system:coredns", namespace=None, roleRef=role, subjects=[subject]),
    ]


def _workload() -> list[dict[str, object]]:
    labels = {"k8s-app": "kube-dns"}
    container = {
        "name": NAME,
        "image": images.COREDNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [{"name": "dns", "containerPort": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "containerPort": 5353}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
    }
    pod = {
        "serviceAccountName": NAME,
        "dnsPolicy": "Default",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": NAME}}],
    }
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns-tcp"},
    ]
    template = {"metadata": {"labels": labels}, "spec": pod}
    return [
        _object("v1", "ConfigMap", NAME, data={"Corefile": _COREFILE}),
        _object("apps/v1", "Deployment", NAME, spec={"replicas": 1, "selector": {"matchLabels": labels}, "template": template}),
        _object("v1", "Service", "kube-dns", spec={"clusterIP": DNS_SERVICE, "selector": labels, "ports": ports}),
    ]


def _object(api_version: str, kind: str, name: str, namespace: str | None = NAMESPACE, **fields: object) -> dict[str, object]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}
