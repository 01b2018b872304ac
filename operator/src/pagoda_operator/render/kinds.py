"""The kinds of objects that plans are made of, and where the Kubernetes API keeps them. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiKind:
    api_version: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Of one object, or of all in a namespace; below the API server's address."""
        root = "apis" if "/" in self.api_version else "api"
        return f"/{root}/{self.api_version}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


KINDS: Mapping[str, ApiKind] = {
    "ServiceAccount": ApiKind("v1", "serviceaccounts"),
    "Role": ApiKind("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ApiKind("rbac.authorization.k8s.io/v1", "rolebindings"),
    "NetworkPolicy": ApiKind("networking.k8s.io/v1", "networkpolicies"),
    "Service": ApiKind("v1", "services"),
    "PersistentVolumeClaim": ApiKind("v1", "persistentvolumeclaims"),
    "PodDisruptionBudget": ApiKind("policy/v1", "poddisruptionbudgets"),
    "ServiceMonitor": ApiKind("monitoring.coreos.com/v1", "servicemonitors"),
    "PrometheusRule": ApiKind("monitoring.coreos.com/v1", "prometheusrules"),
    "Deployment": ApiKind("apps/v1", "deployments"),
}
"""In the order to apply them: what a pod needs comes before the pods. Deletes go the other way round."""

APPLY_ORDER = tuple(KINDS)

MONITORING = tuple(kind for kind, place in KINDS.items() if place.api_version.startswith("monitoring.coreos.com/"))
"""The Prometheus operator's: not every cluster knows them."""
