"""What is done to the operator and what is read off: changes, a restart, a failover. Each function measures one thing."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pagoda_bench.operator_scale.plane import Api
from pagoda_bench.operator_scale.process import OperatorProcess

MODELS = "/apis/pagoda.dev/v1alpha1"
DEPLOYMENTS = "/apis/apps/v1"


@dataclass(frozen=True, slots=True)
class Model:
    namespace: str
    name: str

    @property
    def path(self) -> str:
        return f"{MODELS}/namespaces/{self.namespace}/inferencemodels/{self.name}"

    def document(self, replicas: int) -> dict[str, Any]:
        return {
            "apiVersion": "pagoda.dev/v1alpha1",
            "kind": "InferenceModel",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "model": {"source": f"hf://bench/{self.name}"},
                "engine": {"maxModelLen": 8192},
                "resources": {"gpus": 1, "cpu": "1", "memory": "8Gi"},
                "scaling": {"min": replicas, "max": replicas},
            },
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds."""

    p50: float
    p99: float
    worst: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        ordered = sorted(seconds)
        p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
        return cls(round(statistics.median(ordered), 3), round(p99, 3), round(ordered[-1], 3), len(ordered))


class TooLong(RuntimeError):
    """Something did not happen in time; the numbers so far would mislead."""


def wait(holds: Callable[[], bool], what: str, timeout_s: float, every_s: float = 0.5) -> float:
    """Seconds until it held."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > timeout_s:
            raise TooLong(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)
    return time.monotonic() - began


def create(api: Api, models: Sequence[Model], replicas: int) -> None:
    for model in models:
        api.create(f"{MODELS}/namespaces/{model.namespace}/inferencemodels", model.document(replicas))


def ready_pods(api: Api) -> int:
    """Of worker Deployments, whose pods are ready only when the operator has set their gate."""
    return sum(ready for ready, _, _ in _rollouts(api))


def settled(api: Api) -> bool:
    """No worker Deployment has a rollout under way. Looked at twice: a change just made is not in its Deployment yet."""
    for _ in range(2):
        if not all(ready == updated == wanted for ready, updated, wanted in _rollouts(api)):
            return False
        time.sleep(3)
    return True


def _rollouts(api: Api) -> list[tuple[int, int, int]]:
    """Ready, updated and wanted pods of each, as kubectl prints them: whole objects would be megabytes, and a load of their own."""
    table = api.table(f"{DEPLOYMENTS}/deployments", labelSelector="app.kubernetes.io/component=worker")
    place = {column["name"]: index for index, column in enumerate(table["columnDefinitions"])}
    found = []
    for row in table["rows"]:
        ready, _, wanted = row["cells"][place["Ready"]].partition("/")
        found.append((int(ready), int(row["cells"][place["Up-to-date"]]), int(wanted)))
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """Seconds from sending a changed spec."""

    accepted: float
    """Until the API server has answered: its own share, which grows with what it holds."""
    child: float
    """Until a watcher is told of the worker Deployment's new template."""


def spec_to_child(api: Api, model: Model, max_model_len: int) -> Change:
    path, selector = f"{DEPLOYMENTS}/namespaces/{model.namespace}/deployments", f"pagoda.dev/model={model.name}"
    listed = api.get(path, labelSelector=selector)
    before = {item["metadata"]["name"]: item["metadata"]["generation"] for item in listed["items"]}
    with api.watch(path, listed["metadata"]["resourceVersion"], labelSelector=selector) as events:
        began = time.monotonic()
        api.patch(model.path, {"spec": {"engine": {"maxModelLen": max_model_len}}})
        accepted = time.monotonic() - began
        for event in events:
            changed = event["object"]["metadata"]
            if event["type"] == "MODIFIED" and changed["generation"] > before.get(changed["name"], 0):
                return Change(accepted, time.monotonic() - began)
    raise TooLong(f"{model.namespace}/{model.name}: its Deployment was not changed within two minutes")


def changes(api: Api, models: Sequence[Model], *, every_s: float, max_model_len: int) -> list[Change]:
    """One change after another at this pace; each starts a rollout that goes on while the next ones are made."""
    taken = []
    for model in models:
        taken.append(spec_to_child(api, model, max_model_len))
        time.sleep(every_s)
    return taken


def new_model(api: Api, model: Model, replicas: int) -> float:
    """From sending a new InferenceModel to its worker Deployment being told to a watcher."""
    path, selector = f"{DEPLOYMENTS}/namespaces/{model.namespace}/deployments", f"pagoda.dev/model={model.name}"
    listed = api.get(path, labelSelector=selector)
    with api.watch(path, listed["metadata"]["resourceVersion"], labelSelector=selector) as events:
        began = time.monotonic()
        create(api, [model], replicas)
        next(event for event in events if event["type"] == "ADDED")
        return time.monotonic() - began


def calls_per_change(
    api: Api, operator: OperatorProcess, models: Sequence[Model], *, max_model_len: int, idle_s: float
) -> tuple[dict[str, float], float]:
    """API calls of one change until its rollout is over, by verb and resource; and those per second with nothing to do."""
    before = operator.calls()
    time.sleep(idle_s)
    idle = _minus(operator.calls(), before)
    began, before = time.monotonic(), operator.calls()
    for model in models:
        api.patch(model.path, {"spec": {"engine": {"maxModelLen": max_model_len}}})
    wait(lambda: settled(api), "the rollouts of the counted changes", 300)
    time.sleep(10)  # statuses and the last reports
    lasted, done = time.monotonic() - began, _minus(operator.calls(), before)
    per_change = {call: round((count - idle.get(call, 0) * lasted / idle_s) / len(models), 2) for call, count in done.items()}
    return {call: count for call, count in sorted(per_change.items()) if count > 0.01}, round(sum(idle.values()) / idle_s, 2)


def _minus(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {call: count - before.get(call, 0) for call, count in after.items()}


@dataclass(frozen=True, slots=True)
class Restart:
    leads_s: float
    """From its start until it holds the Lease."""
    changed_children_s: float
    """Until every spec that was changed while no operator ran is in its Deployment."""
    converged_s: float
    """Until every model was reconciled at least once and nothing waits."""
    memory_mib: int
    api_calls: dict[str, float]


def restart(
    api: Api, start: Callable[[], OperatorProcess], models: Sequence[Model], *, of_all: int, max_model_len: int
) -> tuple[Restart, OperatorProcess]:
    """`models` are changed before the start."""
    generations = {model: _generation(api, model) for model in models}
    for model in models:
        api.patch(model.path, {"spec": {"engine": {"maxModelLen": max_model_len}}})
    operator = start()
    leads = wait(lambda: operator.leads, "the restarted operator leads", 60, 0.1)

    def converged() -> bool:
        samples = operator.samples()
        reconciled = sum(
            v for (name, labels), v in samples.items() if name == "pagoda_operator_reconcile_seconds_count" and 'unit="model"' in labels
        )
        return reconciled >= of_all and samples.get(("pagoda_operator_queue_depth", ""), 1) == 0

    wait(converged, "every model reconciled after the restart", 180, 0.2)
    total = time.monotonic() - operator.started
    calls = operator.calls()
    children = 0.0
    for model in models:
        wait(lambda model=model: _generation(api, model) > generations[model], f"the child of {model.name} after the restart", 60, 0.1)  # type: ignore[misc]
        children = max(children, _applied_at(api, model) - operator.started_at)
    return Restart(round(leads, 1), round(children, 1), round(total, 1), operator.memory_bytes >> 20, calls), operator


def _applied_at(api: Api, model: Model) -> float:
    """When the operator last wrote its Deployment, by the API server's clock, in whole seconds."""
    entries = _deployment(api, model)["metadata"]["managedFields"]
    written = [entry["time"] for entry in entries if entry["manager"] == "pagoda-operator"]
    return max(datetime.fromisoformat(moment).timestamp() for moment in written)


def _deployment(api: Api, model: Model) -> Any:
    path = f"{DEPLOYMENTS}/namespaces/{model.namespace}/deployments"
    return api.get(path, labelSelector=f"pagoda.dev/model={model.name}")["items"][0]


def _generation(api: Api, model: Model) -> int:
    return int(_deployment(api, model)["metadata"]["generation"])


def failover(api: Api, leader: OperatorProcess, standby: OperatorProcess, model: Model, *, max_model_len: int) -> tuple[float, float]:
    """The leader is killed without a word: seconds until the other leads, and until a spec changed right then is in its Deployment."""
    path, selector = f"{DEPLOYMENTS}/namespaces/{model.namespace}/deployments", f"pagoda.dev/model={model.name}"
    listed = api.get(path, labelSelector=selector)
    before = listed["items"][0]["metadata"]["generation"]
    with api.watch(path, listed["metadata"]["resourceVersion"], labelSelector=selector) as events:
        began = time.monotonic()
        leader.kill()
        api.patch(model.path, {"spec": {"engine": {"maxModelLen": max_model_len}}})
        wait(lambda: standby.leads, "the standby leads", 60, 0.05)
        leads = time.monotonic() - began
        next(event for event in events if event["object"]["metadata"]["generation"] > before)
        return round(leads, 1), round(time.monotonic() - began, 1)
