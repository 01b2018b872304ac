"""Taking it away leaves nothing, in the documented order: models, operator, CRDs."""

import json

from conftest import SYSTEM, Installation
from kube import eventually, run

KINDS = ",".join(
    (
        "deployments replicasets pods services endpointslices networkpolicies poddisruptionbudgets",
        "secrets configmaps serviceaccounts roles rolebindings leases persistentvolumeclaims",
    )
).replace(" ", ",")
KUBERNETES_OWN = {"ServiceAccount/default", "ConfigMap/kube-root-ca.crt"}
"""In every namespace."""
USERS_OWN = {"Secret/pagoda-database", "Secret/pagoda-redis"}
"""Made for the chart's values, by test_keys.py where it runs: whoever made them takes them away."""


def test_uninstalling_leaves_nothing(installation: Installation) -> None:
    models = installation.models
    models.kubectl("delete", "inferencemodels", "--all", "--wait=true")

    def left(namespace: str) -> list[str]:
        items = json.loads(run("kubectl", "--namespace", namespace, "get", KINDS, "-o", "json"))["items"]
        return sorted({f"{item['kind']}/{item['metadata']['name']}" for item in items} - KUBERNETES_OWN - USERS_OWN)

    eventually(lambda: left("models") == [], within_s=90, of="the models' namespace is empty")
    run("helm", "uninstall", "pagoda", "--namespace", SYSTEM.name, "--wait")
    run("helm", "uninstall", "pagoda-crds", "--namespace", SYSTEM.name, "--wait")
    eventually(lambda: left(SYSTEM.name) == [], within_s=60, of="the release's namespace is empty")
    cluster_wide = run("kubectl", "get", "clusterroles,clusterrolebindings,crds", "-o", "name")
    assert "pagoda" not in cluster_wide
