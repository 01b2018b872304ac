"""fleet.json: what the router knows of models and workers, in the shape of EndpointSlices. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from pagoda_operator.labels import LABEL_BACKEND, LABEL_MODEL, LABEL_TEMPLATE, LABEL_VARIANT
from pagoda_operator.local.pod import Pod

VERSION = 1


def fleet_document(models: Sequence[Mapping[str, Any]], workers: Sequence[Pod]) -> dict[str, Any]:
    slices = [_slice(pod) for pod in workers if pod.now.launch is not None and pod.now.pid is not None]
    return {"version": VERSION, "models": list(models), "endpointSlices": slices}


def _slice(pod: Pod) -> dict[str, Any]:
    """One per process: each has ports of its own."""
    launch = pod.now.launch
    assert launch is not None
    labels = pod.template.labels
    return {
        "metadata": {
            "name": pod.name,
            "labels": {label: labels[label] for label in (LABEL_MODEL, LABEL_VARIANT, LABEL_TEMPLATE, LABEL_BACKEND) if label in labels},
        },
        "addressType": "IPv6" if ":" in launch.host else "IPv4",
        "ports": [{"name": name, "port": launch.ports[port]} for name, port in pod.template.ports.items()],
        "endpoints": [
            {
                "addresses": [launch.host],
                "conditions": {"ready": pod.now.ready and not pod.ending, "serving": pod.now.served, "terminating": pod.ending},
                "targetRef": {"kind": "Pod", "name": pod.name},
            }
        ],
    }
