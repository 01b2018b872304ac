"""kubectl and helm as the tests use them: words in, plain objects out. Knows no test."""

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

T = TypeVar("T")
Object = dict[str, Any]

TOLD_FROM_S = 10.0
"""What took longer than this is printed: such waits are where the minutes go."""


class CommandFailed(Exception):
    """A command ended with an error; the text is what it wrote."""


def run(*words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise CommandFailed(f"there is no {words[0]} in PATH") from None
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def eventually(look: Callable[[], T], *, within_s: float, of: str, every_s: float = 0.25) -> T:
    """The first truthy answer of `look`. What it raises meanwhile counts as not yet, and is shown when the time is over."""
    began, last = time.monotonic(), ""
    ends = began + within_s
    while True:
        try:
            if found := look():
                if (waited_s := time.monotonic() - began) > TOLD_FROM_S:
                    print(f"after {waited_s:.0f} s: {of}")
                return found
            last = repr(found)
        except (AssertionError, CommandFailed, KeyError, IndexError) as error:
            last = str(error)
        if time.monotonic() > ends:
            raise AssertionError(f"not within {within_s:g} s: {of}; last seen: {last}")
        time.sleep(every_s)


@dataclass(frozen=True)
class Namespace:
    """One namespace, through kubectl."""

    name: str

    def kubectl(self, *words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return run("kubectl", "--namespace", self.name, *words, stdin=stdin, timeout_s=timeout_s)

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def all(self, kind: str, selector: str = "") -> list[Object]:
        items: list[Object] = json.loads(self.kubectl("get", kind, *(["--selector", selector] if selector else []), "-o", "json"))["items"]
        return items

    def apply(self, *objects: Object, manager: str = "kubectl") -> str:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self.kubectl("apply", "--server-side", "--force-conflicts", f"--field-manager={manager}", "-f", "-", stdin=text)

    def delete(self, kind: str, *names: str, wait: bool = True, **options: str) -> None:
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        self.kubectl("delete", kind, *names, "--ignore-not-found", f"--wait={str(wait).lower()}", *words)

    def now(self, path: str) -> str:
        """The version of a list, such as /api/v1/namespaces/a/pods: what `versions` counts from."""
        return str(json.loads(self.kubectl("get", "--raw", f"{path}?limit=1"))["metadata"]["resourceVersion"])

    def versions(self, path: str, since: str) -> list[Object]:
        """Every version of the objects below `path` that was written after `since`, in order: none slips between two looks."""
        lines = self.kubectl("get", "--raw", f"{path}?watch=true&resourceVersion={since}&timeoutSeconds=1").splitlines()
        events = [json.loads(line) for line in lines]
        assert not [event for event in events if event["type"] == "ERROR"], events[-1]
        return [event["object"] for event in events]

    def pods(self, component: str, model: str | None = None) -> list[Object]:
        """Those that are not on their way out."""
        selector = f"app.kubernetes.io/managed-by=pagoda-operator,app.kubernetes.io/component={component}"
        items = self.all("pods", selector if model is None else f"{selector},pagoda.dev/model={model}")
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def condition(self, model: str, kind: str) -> Object:
        conditions = self.get("inferencemodel", model)["status"]["conditions"]
        return next(condition for condition in conditions if condition["type"] == kind)

    def is_ready(self, model: str) -> bool:
        """Ready, and said so of the spec as it is now."""
        return _is_ready(self.get("inferencemodel", model))

    def is_settled(self, model: str) -> bool:
        """Ready, and nothing of an older spec is left."""
        document = self.get("inferencemodel", model)  # once: two looks could see the old spec settled and the new one ready
        progressing = next(condition for condition in document["status"]["conditions"] if condition["type"] == "Progressing")
        return _is_ready(document) and progressing["status"] == "False" and progressing["reason"] == "Settled"

    def pod_uids(self) -> set[str]:
        """Of all pods that are not on their way out: what a test that nothing moves compares."""
        return {pod["metadata"]["uid"] for pod in self.all("pods") if "deletionTimestamp" not in pod["metadata"]}


def _is_ready(model: Object) -> bool:
    status = model.get("status", {})
    return bool(status.get("ready") == "True" and status.get("observedGeneration") == model["metadata"]["generation"])


def pod_is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def written_at(version: Object) -> datetime:
    """When the API server wrote this version of an object; whole seconds."""
    return max(datetime.fromisoformat(entry["time"]) for entry in version["metadata"]["managedFields"])


def names(objects: Iterable[Object]) -> set[str]:
    return {item["metadata"]["name"] for item in objects}


def age_s(timestamp: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds()


def merged(document: Object, changes: Object) -> Object:
    """`document` with `changes` laid over it, mapping by mapping; None takes a field away."""
    result = dict(document)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return {key: value for key, value in result.items() if value is not None}
