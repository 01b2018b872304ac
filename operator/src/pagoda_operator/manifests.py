"""From a spec to Kubernetes objects, without I/O.

Called by `plan`. The local executor runs the same pod templates as processes; it rewrites ports, hosts and paths, which therefore
come only from PAGODA_* environment variables.
"""

from dataclasses import dataclass
from typing import Any

from pagoda_operator.spec import InferenceModel

ROUTER_NAME = "pagoda-router"
SESSION_SECRET = ("pagoda-session", "token")
INTERNAL_SECRET = ("pagoda-internal", "token")
API_KEY_SECRET = ("pagoda-api-key", "key")
"""(Secret, key). The first two must exist before the pods start; the third is optional: without it a router bound beyond loopback stops."""


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


def namespace_objects(namespace: str, settings: Settings, *, max_queue_tokens: int) -> list[dict[str, Any]]:
    """The router and the network policies that all models of a namespace share."""
    raise NotImplementedError


def model_objects(model: InferenceModel, settings: Settings) -> list[dict[str, Any]]:
    """What one model owns: per variant a worker Deployment, headless Service and PodDisruptionBudget, and one ServiceAccount."""
    raise NotImplementedError
