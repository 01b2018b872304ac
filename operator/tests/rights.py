"""What the operator may do in a cluster: the literal table. The tests run under exactly these rights, and the chart is compared with it."""

from typing import Any

CHILDREN = ("get", "list", "watch", "create", "patch", "delete")
SEE = ("list", "watch")

TABLE: dict[tuple[str, str], tuple[str, ...]] = {
    # what it serves; get is there only to be handed on to routers
    ("pagoda.dev", "inferencemodels"): ("get", "list", "watch"),
    ("pagoda.dev", "inferencemodels/status"): ("patch",),
    # what it makes
    ("", "serviceaccounts"): CHILDREN,
    ("", "services"): CHILDREN,
    ("", "persistentvolumeclaims"): CHILDREN,
    ("rbac.authorization.k8s.io", "roles"): CHILDREN,
    ("rbac.authorization.k8s.io", "rolebindings"): CHILDREN,
    ("networking.k8s.io", "networkpolicies"): CHILDREN,
    ("policy", "poddisruptionbudgets"): CHILDREN,
    ("apps", "deployments"): CHILDREN,
    ("monitoring.coreos.com", "servicemonitors"): CHILDREN,
    ("monitoring.coreos.com", "prometheusrules"): CHILDREN,
    # written once, never read
    ("", "secrets"): ("create",),
    ("events.k8s.io", "events"): ("create",),
    # what it looks at, and the readiness gate
    ("", "pods"): SEE,
    ("", "pods/status"): ("patch",),
    ("", "nodes"): SEE,
    # held only to be handed on to routers
    ("discovery.k8s.io", "endpointslices"): ("get", "list", "watch"),
}
LEASES: dict[tuple[str, str], tuple[str, ...]] = {("coordination.k8s.io", "leases"): ("get", "create", "update")}
"""In the operator's own namespace only."""

HANDED_ON = {("pagoda.dev", "inferencemodels", "get")} | {("discovery.k8s.io", "endpointslices", verb) for verb in ("get", "list", "watch")}
"""Never used by the operator itself."""

OWN_NAMESPACE = "pagoda-system"
ACCOUNT = "pagoda-operator"


def rules(table: dict[tuple[str, str], tuple[str, ...]]) -> list[dict[str, Any]]:
    return [{"apiGroups": [group], "resources": [resource], "verbs": list(verbs)} for (group, resource), verbs in table.items()]


def objects() -> list[dict[str, Any]]:
    """The account, its rights in the whole cluster, and those in its own namespace."""
    group = "rbac.authorization.k8s.io"
    subjects = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": OWN_NAMESPACE}]
    own = {"name": ACCOUNT, "namespace": OWN_NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OWN_NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": own},
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": ACCOUNT}, "rules": rules(TABLE)},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ACCOUNT},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": ACCOUNT},
            "subjects": subjects,
        },
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": own, "rules": rules(LEASES)},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": own,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT},
            "subjects": subjects,
        },
    ]
