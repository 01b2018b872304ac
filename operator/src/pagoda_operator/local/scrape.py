"""$PAGODA_HOME/prometheus: a Prometheus configuration with the processes of this machine as targets and the rules of its models.

Owns these files. The labels are those that Prometheus adds in a cluster, so that boards and rules are the same. Called by the supervisor
after each round.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from pagoda_operator.labels import LABEL_MODEL, LABEL_VARIANT
from pagoda_operator.local.files import write_whole
from pagoda_operator.local.home import Home
from pagoda_operator.local.pod import Pod
from pagoda_operator.local.secret_files import api_key_file
from pagoda_operator.manifest.spec import InferenceModel
from pagoda_operator.render.slo_rules import slo_groups

COMPONENTS = ("router", "worker")


class ScrapeFiles:
    def __init__(self, home: Home) -> None:
        self._home = home
        self._written: dict[str, str] = {}
        """By file: Prometheus reads a file anew whenever it is written, so only changes are."""

    def publish(self, models: Iterable[InferenceModel], pods: Iterable[Pod]) -> None:
        pods = list(pods)
        for component in COMPONENTS:
            self._write(f"{component}s.json", json.dumps(targets(component, pods), indent=1) + "\n")
        self._write("rules.yml", yaml.safe_dump(rules(models), sort_keys=False, width=1000))
        self._write("prometheus.yml", yaml.safe_dump(configuration(self._home), sort_keys=False))

    def _write(self, name: str, text: str) -> None:
        if self._written.get(name) != text:
            write_whole(self._home.prometheus / name, text)
            self._written[name] = text


def targets(component: str, pods: Iterable[Pod]) -> list[dict[str, Any]]:
    """As file_sd reads it: one entry per process."""
    return [_target(pod) for pod in pods if pod.template.component == component and pod.now.launch is not None and pod.now.pid is not None]


def _target(pod: Pod) -> dict[str, Any]:
    launch, labels = pod.now.launch, pod.template.labels
    assert launch is not None
    host = f"[{launch.host}]" if ":" in launch.host else launch.host
    own = {"namespace": pod.template.namespace, "pod": pod.name}
    model = {_label(name): labels[name] for name in (LABEL_MODEL, LABEL_VARIANT) if name in labels}
    return {"targets": [f"{host}:{launch.ports[pod.template.ports['http']]}"], "labels": own | model}


def _label(name: str) -> str:
    """As the Prometheus operator writes the label of a pod."""
    return name.replace(".", "_").replace("/", "_")


def rules(models: Iterable[InferenceModel]) -> dict[str, Any]:
    promised = ((model, model.spec.slo) for model in models)
    return {"groups": [group for model, slo in promised if slo is not None for group in slo_groups(model.namespace, model.name, slo)]}


def configuration(home: Home) -> Mapping[str, Any]:
    key = api_key_file(home.secrets)
    authorization: Mapping[str, Any] = {"authorization": {"credentials_file": str(key)}} if key.exists() else {}
    return {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {
                "job_name": f"pagoda-{component}",
                # a router asks for the API key wherever there is one
                **(authorization if component == "router" else {}),
                "file_sd_configs": [{"files": [f"{component}s.json"], "refresh_interval": "5s"}],
            }
            for component in COMPONENTS
        ],
    }
