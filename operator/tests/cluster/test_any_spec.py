"""Any spec → any spec gives the same objects as starting with the last: through the shared reconcile path, on an executor in memory that
applies as a server does (what its manager no longer says is removed, what others own stays)."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pagoda_operator.manifest.spec import parse
from pagoda_operator.observed.world import ObjectRef, Observed, ref_of
from pagoda_operator.plan.plan import Plan
from pagoda_operator.reconcile import reconcile
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.kinds import APPLY_ORDER, MONITORING
from pagoda_operator.scaling.history import ScalingHistory

INSTALLATION = Settings(
    version="1.2.3", master_key=b"0123456789abcdef", router_replicas=2, host_paths=True, monitoring=frozenset(MONITORING)
)
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

SOURCES = st.sampled_from(
    [
        {"source": "builtin://tiny"},
        {"source": "hf://org/name", "cache": {"size": "5Gi"}},
        {"source": "hf://org/name", "revision": "v2", "cache": {"claim": "shared"}},
        {"source": "file:///models/a"},
    ]
)
ENGINES = st.fixed_dictionaries({}, optional={"maxRunning": st.integers(1, 4), "dtype": st.sampled_from(["fp32", "bf16"])})
SCALINGS = st.builds(lambda least, more: {"min": least, "max": max(1, least + more)}, st.integers(0, 3), st.integers(0, 2))
VARIANTS = st.lists(st.sampled_from("abc"), unique=True, min_size=1).map(
    lambda names: [{"name": name, "weight": number} for number, name in enumerate(names, 1)]
)
SPECS = st.fixed_dictionaries(
    {"model": SOURCES},
    optional={
        "engine": ENGINES,
        "scaling": SCALINGS,
        "variants": VARIANTS,
        "servedNames": st.lists(st.sampled_from(["x", "y"]), unique=True, min_size=1),
        "rollout": st.fixed_dictionaries({"strategy": st.sampled_from(["surge", "replace"])}),
        "slo": st.fixed_dictionaries(
            {}, optional={"ttft": st.sampled_from(["500ms", "1s"]), "objective": st.sampled_from(["99%", "99.5%"])}
        ),
        "resources": st.fixed_dictionaries({}, optional={"gpus": st.integers(0, 1), "cpu": st.sampled_from(["1", "500m"])}),
    },
)


class Server:
    """Objects with the fields that each manager last applied, merged."""

    def __init__(self) -> None:
        self.applied: dict[ObjectRef, dict[str, Mapping[str, Any]]] = {}

    async def observe(self) -> Observed:
        objects = {ref: self._merged(managers) for ref, managers in self.applied.items()}
        return Observed(objects=objects, pods=(), endpoint=None, now=NOW)

    async def apply(self, wanted: Plan) -> None:
        for document in wanted.apply:
            ref = ref_of(document)
            managers = self.applied.setdefault(ref, {})
            if ref in wanted.replicas and "operator" in managers and "replicas" not in document["spec"] and "scaler" not in managers:
                await self.scale(ref, self._merged(managers)["spec"]["replicas"])  # as cluster/apply.py does
            managers["operator"] = document
        for ref in wanted.delete:
            del self.applied[ref]

    async def scale(self, ref: ObjectRef, replicas: int) -> bool:
        managers = self.applied[ref]
        managers["scaler"] = {"spec": {"replicas": replicas}}
        document = managers["operator"]
        managers["operator"] = {**document, "spec": {key: value for key, value in document["spec"].items() if key != "replicas"}}
        return True

    def _merged(self, managers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        document = dict(managers["operator"])
        if "scaler" in managers:
            document["spec"] = {**document["spec"], **managers["scaler"]["spec"]}
        return document


def model(spec: Mapping[str, Any], generation: int) -> dict[str, Any]:
    metadata = {"name": "chat", "namespace": "n", "uid": "u", "generation": generation, "creationTimestamp": "2026-03-01T12:00:00Z"}
    return {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": metadata, "spec": spec}


def objects_after(specs: Sequence[Mapping[str, Any]]) -> dict[ObjectRef, Mapping[str, Any]]:
    async def run() -> dict[ObjectRef, Mapping[str, Any]]:
        server, history = Server(), ScalingHistory()
        for number, spec in enumerate(specs, 1):
            await reconcile([model(spec, number)], server, INSTALLATION, history, float(number))
            last = await reconcile([model(spec, number)], server, INSTALLATION, history, float(number))
            assert last.plan.empty, last.plan.reasons
        return dict((await server.observe()).objects)

    return asyncio.run(run())


@given(st.lists(SPECS, min_size=1, max_size=3), SPECS)
@example([{"model": {"source": "builtin://tiny"}, "scaling": {"min": 3, "max": 3}}], {"model": {"source": "builtin://tiny"}})
@settings(max_examples=40)
def test_any_history_of_specs_ends_in_the_same_objects(before: list[dict[str, Any]], last: dict[str, Any]) -> None:
    fresh, found = objects_after([last]), objects_after([*before, last])
    # a cache outlives every edit of its model: weights are not thrown away for a changed field
    assert fresh.keys() == {ref for ref in found if ref in fresh or ref.kind != "PersistentVolumeClaim"}
    fixed = {variant.name: variant.scaling.fixed is not None for variant in parse(model(last, 1)).variants}
    for ref, document in fresh.items():
        assert ref.kind in APPLY_ORDER
        assert comparable(found[ref], fixed) == comparable(document, fixed), str(ref)


def comparable(document: Mapping[str, Any], fixed: Mapping[str, bool]) -> Any:
    """Without what may differ: replicas that demand decides, and the size of a claim, which never shrinks."""
    variant = document["metadata"]["labels"].get("pagoda.dev/variant")
    if document["kind"] == "Deployment" and variant is not None and not fixed[variant]:
        return {**document, "spec": {**document["spec"], "replicas": None}}
    return document


def test_the_executor_in_memory_removes_what_is_no_longer_said() -> None:
    """Else the property above would hold of anything."""
    server = Server()
    made = {"kind": "Deployment", "metadata": {"name": "a", "namespace": "n", "labels": {}}, "spec": {"x": 1, "replicas": 2}}
    plan = Plan(apply=(made,), delete=(), reasons=(), models=(), served_names={}, conflicts={}, invalid={})
    asyncio.run(server.apply(plan))
    changed = {**made, "spec": {"y": 1}}
    asyncio.run(server.apply(replace(plan, apply=(changed,), replicas={ref_of(made): None})))
    assert asyncio.run(server.observe()).objects[ref_of(made)]["spec"] == {"y": 1, "replicas": 2}
