"""Labels of what we make, and the selectors that find our pods. Plain data."""

from collections.abc import Mapping

from pagoda_operator.observed import LABEL_COMPONENT, LABEL_MANAGED_BY, LABEL_PART_OF, MANAGED_BY

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
