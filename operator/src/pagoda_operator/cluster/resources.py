"""Where each kind lives in the Kubernetes API. Plain data."""

from dataclasses import dataclass

from pagoda_operator.manifest.validate import API_VERSION, KIND
from pagoda_operator.observed.world import ObjectRef
from pagoda_operator.render.kinds import KINDS


@dataclass(frozen=True, slots=True)
class Resource:
    kind: str
    api_version: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        place = f"/namespaces/{namespace}" if namespace else ""
        return f"{root}{place}/{self.plural}{f'/{name}' if name else ''}{f'/{subresource}' if subresource else ''}"


MODELS = Resource(KIND, API_VERSION, "inferencemodels")
PODS = Resource("Pod", "v1", "pods")
NODES = Resource("Node", "v1", "nodes")
SECRETS = Resource("Secret", "v1", "secrets")
LEASES = Resource("Lease", "coordination.k8s.io/v1", "leases")
EVENTS = Resource("Event", "events.k8s.io/v1", "events")

CHILDREN = tuple(Resource(kind, place.api_version, place.plural) for kind, place in KINDS.items())
"""What plans are made of, those included that not every cluster knows."""

BY_KIND = {resource.kind: resource for resource in (*CHILDREN, MODELS, PODS, NODES, SECRETS)}


def path_of(ref: ObjectRef, subresource: str | None = None) -> str:
    return BY_KIND[ref.kind].path(ref.namespace, ref.name, subresource)
