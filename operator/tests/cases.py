"""The table in `manifests/` and builders of documents, pods and worlds for tests of the pure half."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pagoda_operator.labels import LABEL_COMPONENT, LABEL_MODEL, LABEL_TEMPLATE
from pagoda_operator.observed.world import ObjectRef, Observed, PodView, ref_of
from pagoda_operator.plan.plan import Plan, plan
from pagoda_operator.render.installation import Settings

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted((REPOSITORY / "docs/quickstart").glob("*.yaml"))
MANIFESTS = Path(__file__).parent / "manifest/documents"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SETTINGS = Settings(version="1.2.3")
TINY = "builtin://tiny"


@dataclass(frozen=True)
class ManifestCase:
    name: str
    document: dict[str, Any]
    expect: tuple[tuple[str, str], ...]
    own: frozenset[str]
    """Fields whose sentence the CRD does not have."""
    skipped: bool = False
    """The API server never sees it as written."""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def manifest_cases() -> list[ManifestCase]:
    return [_case(path.stem, raw) for path in sorted(MANIFESTS.glob("*.yaml")) for raw in yaml.safe_load_all(path.read_text())]


def _case(topic: str, raw: Mapping[str, Any]) -> ManifestCase:
    document = raw["document"] if "document" in raw else inference_model("chat", raw["spec"], stored=False)
    return ManifestCase(
        name=f"{topic}: {raw['case']}",
        document=document,
        expect=tuple((problem["field"], problem["message"]) for problem in raw["expect"]),
        own=frozenset(problem["field"] for problem in raw["expect"] if problem.get("own")),
        skipped=raw.get("kubectl") == "skip",
    )


def inference_model(
    name: str = "chat", spec: Mapping[str, Any] | None = None, *, namespace: str = "default", age_s: int = 0, stored: bool = True
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if stored:
        created = datetime.fromtimestamp(NOW.timestamp() - age_s, UTC)
        metadata |= {"namespace": namespace, "uid": f"uid-{namespace}-{name}", "generation": 1}
        metadata["creationTimestamp"] = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    spec = {"model": {"source": TINY}} if spec is None else spec
    return {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": metadata, "spec": spec}


def world(*objects: Mapping[str, Any], pods: Iterable[PodView] = (), endpoint: str | None = "http://127.0.0.1:8000/v1") -> Observed:
    return Observed(objects={ref_of(document): document for document in objects}, pods=tuple(pods), endpoint=endpoint, now=NOW)


def carried_out(observed: Observed, change: Plan) -> Observed:
    """The world after an executor did what the plan says, as server-side apply would: replicas that it leaves out stay the scaler's."""
    objects = {ref: live for ref, live in observed.objects.items() if ref not in change.delete}
    for document in change.apply:
        live = objects.get(ref_of(document))
        if live is not None and "replicas" in live.get("spec", {}):
            document = document | {"spec": {"replicas": live["spec"]["replicas"], **document["spec"]}}
        objects[ref_of(document)] = document
    return replace(observed, objects=objects)


def settled(documents: list[dict[str, Any]], settings: Settings = SETTINGS) -> Observed:
    return carried_out(world(), plan(documents, world(), settings))


def template_of(observed: Observed, deployment: str, namespace: str = "default") -> dict[str, Any]:
    template: dict[str, Any] = observed.objects[ObjectRef("Deployment", namespace, deployment)]["spec"]["template"]
    return template


def worker(observed: Observed, model: str = "chat", number: int = 0, *, template: str | None = None, **changes: Any) -> PodView:
    labels = dict(template_of(observed, f"{model}-default")["metadata"]["labels"])
    if template is not None:
        labels[LABEL_TEMPLATE] = template
    assert labels[LABEL_MODEL] == model
    assert labels[LABEL_COMPONENT] == "worker"
    view = PodView(name=f"{model}-default-{number}", labels=labels, phase="Running", serving=True)
    return replace(view, **_as_fields(changes))


def router(observed: Observed, **changes: Any) -> PodView:
    labels = template_of(observed, "pagoda-router")["metadata"]["labels"]
    return replace(PodView(name="pagoda-router-0", labels=labels, phase="Running", serving=True), **_as_fields(changes))


def _as_fields(changes: Mapping[str, Any]) -> dict[str, Any]:
    """`ready` stands for its probe's answer."""
    return {"serving" if name == "ready" else name: value for name, value in changes.items()}
