"""Labels of what we make, by which all rooms find it again, and the selectors that find our pods. Plain data."""

from collections.abc import Mapping

MANAGED_BY = "pagoda-operator"
"""Value of app.kubernetes.io/managed-by on everything that we made. Only such objects are ever changed."""

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MODEL = "pagoda.dev/model"
LABEL_VARIANT = "pagoda.dev/variant"
LABEL_TEMPLATE = "pagoda.dev/template"
LABEL_BACKEND = "pagoda.dev/backend"
"""Only on what is not our own worker."""

PARTS: Mapping[str, Mapping[str, str]] = {part: {LABEL_MANAGED_BY: MANAGED_BY, LABEL_COMPONENT: part} for part in ("router", "worker")}
"""Labels by which all routers of a namespace are found, or all workers."""


def common_labels(instance: str, component: str, version: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": f"pagoda-{component}",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/version": version,
        LABEL_COMPONENT: component,
        LABEL_PART_OF: "pagoda",
        LABEL_MANAGED_BY: MANAGED_BY,
    }
