"""What a router reads in a fleet document, and how it watches the file."""

import json
import os
from copy import deepcopy
from typing import Any

import pytest

from pagoda_router.discovery.file import FileDiscovery
from pagoda_router.discovery.snapshot import BadSnapshot, Endpoint, FleetSnapshot, names_to_models, parse_snapshot

MODEL = {
    "apiVersion": "pagoda.dev/v1alpha1",
    "kind": "InferenceModel",
    "metadata": {"name": "tiny", "namespace": "default", "uid": "1", "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z"},
    "spec": {"model": {"source": "builtin://tiny"}, "scaling": {"min": 1, "max": 1}},
    "status": {},
}
SLICE = {
    "metadata": {
        "name": "tiny-default-0",
        "labels": {"pagoda.dev/model": "tiny", "pagoda.dev/variant": "default", "pagoda.dev/template": "abc"},
    },
    "addressType": "IPv4",
    "ports": [{"name": "grpc", "port": 41234}, {"name": "http", "port": 41235}],
    "endpoints": [
        {
            "addresses": ["127.0.0.1"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "name": "tiny-default-0"},
        }
    ],
}
WORKER = Endpoint(name="tiny-default-0", model="tiny", variant="default", template="abc", host="127.0.0.1", port=41234)


def fleet(models: list[Any] | None = None, slices: list[Any] | None = None) -> dict[str, Any]:
    return {"version": 1, "models": [MODEL] if models is None else models, "endpointSlices": [SLICE] if slices is None else slices}


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one field set; a path part that is a number is an index; None removes."""
    copy = deepcopy(document)
    at: Any = copy
    *parts, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parts:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return copy


@pytest.mark.parametrize(
    ("scaling", "least"),
    [
        (None, 1),
        ({"max": 4}, 1),
        ({"min": 0}, 0),
        ({"min": 2, "max": 4}, 2),
        ({"mode": "external", "min": 2}, 2),
        ({"mode": "external", "min": 2, "replicas": 0}, 0),
    ],
    ids=str,
)
def test_a_model_sleeps_only_where_its_manifest_says_so(scaling: dict[str, Any] | None, least: int):
    (model,) = parse_snapshot(fleet(models=[changed(MODEL, "spec/scaling", scaling)])).models
    assert model.min_replicas == least


def test_a_fleet_is_models_and_the_workers_that_serve():
    snapshot = parse_snapshot(fleet())
    (model,) = snapshot.models
    assert (model.name, model.served_names, model.source, model.created) == ("tiny", ("tiny",), "builtin://tiny", 1767323045)
    assert snapshot.endpoints == {WORKER: True}
    assert snapshot.awaited == {"tiny"}
    assert snapshot.problems == ()


CONDITIONS = [
    # serving, terminating → listed, accepting, awaited
    ({"ready": True, "serving": True}, True, True, True),
    ({"ready": False, "serving": True}, True, True, True),
    ({"ready": False, "serving": False}, False, None, True),
    ({"ready": False, "serving": True, "terminating": True}, True, False, False),
    ({"ready": False, "serving": False, "terminating": True}, True, False, False),
    ({}, True, True, True),
    ({"serving": None, "terminating": None}, True, True, True),
]


@pytest.mark.parametrize(("conditions", "listed", "accepting", "awaited"), CONDITIONS, ids=str)
def test_the_conditions_of_an_endpoint_decide(conditions, listed, accepting, awaited):
    snapshot = parse_snapshot(fleet(slices=[changed(SLICE, "endpoints/0/conditions", conditions)]))
    assert snapshot.endpoints.get(WORKER) == accepting
    assert (WORKER in snapshot.endpoints) == listed
    assert ("tiny" in snapshot.awaited) == awaited


BAD_SLICES = [
    ("ports", [{"name": "http", "port": 1}], "no port is named grpc"),
    ("ports/0/port", "x", "invalid literal"),
    ("metadata/labels/pagoda.dev~model", None, "pagoda.dev/model is missing"),
    ("endpoints/0/addresses", None, "addresses is missing"),
    ("endpoints/0/addresses", [7], "addresses is a non-empty string"),
    ("metadata", "x", "has no attribute"),
]


@pytest.mark.parametrize(("path", "value", "complaint"), BAD_SLICES, ids=str)
def test_a_bad_slice_is_named_and_hides_no_other(path, value, complaint):
    bad = deepcopy(SLICE)
    if "~" in path:
        del bad["metadata"]["labels"]["pagoda.dev/model"]
    else:
        bad = changed(SLICE, path, value)
    snapshot = parse_snapshot(fleet(slices=[bad, SLICE]))
    assert snapshot.endpoints == {WORKER: True}
    assert len(snapshot.problems) == 1
    assert "endpointSlices[0]" in snapshot.problems[0]
    assert complaint in snapshot.problems[0]


@pytest.mark.parametrize(
    "bad",
    ["x", 7, None, {}, {"metadata": {}}, {"metadata": {"name": ""}}, changed(MODEL, "metadata/creationTimestamp", "yesterday")],
    ids=str,
)
def test_a_bad_model_is_named_and_hides_no_other(bad):
    snapshot = parse_snapshot(fleet(models=[bad, MODEL]))
    assert [model.name for model in snapshot.models] == ["tiny"]
    assert snapshot.problems[0].startswith("models[0] is unusable: ")


@pytest.mark.parametrize(
    "document", [[], "x", None, {}, {"version": 2}, {"version": 1, "models": {}}, {"version": 1, "endpointSlices": 3}], ids=str
)
def test_a_document_of_another_kind_is_refused(document):
    with pytest.raises(BadSnapshot):
        parse_snapshot(document)


def test_unknown_fields_and_missing_lists_are_fine():
    assert parse_snapshot({"version": 1, "future": True}) == FleetSnapshot()


def test_a_name_claimed_twice_is_the_older_objects():
    older = changed(changed(MODEL, "metadata/name", "older"), "metadata/creationTimestamp", "2025-01-01T00:00:00+00:00")
    older["spec"]["servedNames"] = ["chat", "tiny"]
    owners = names_to_models(parse_snapshot(fleet(models=[MODEL, older])).models)
    assert {name: model.name for name, model in owners.items()} == {"chat": "older", "tiny": "older"}


def test_the_reason_of_a_model_is_its_first_false_condition():
    conditions = [{"type": "A", "status": "True", "message": "x"}, {"type": "B", "status": "False", "reason": "Pulling", "message": ""}]
    (model,) = parse_snapshot(fleet(models=[changed(MODEL, "status", {"conditions": conditions})])).models
    assert model.not_ready_reason == "Pulling"


# ---------------------------------------------------------------- the file


class Watched:
    def __init__(self, folder):
        self.path = folder / "fleet.json"
        self.seen: list[FleetSnapshot] = []
        self.discovery = FileDiscovery(self.path, self.seen.append)

    def write(self, content: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(content)
        fresh.replace(self.path)

    def poll(self) -> int:
        self.discovery.poll()
        return len(self.seen)


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_a_fleet_file_is_read_when_it_appears_and_when_it_changes(watched):
    assert watched.poll() == 0
    assert not watched.discovery.loaded
    watched.write(json.dumps(fleet()))
    assert watched.poll() == 1
    assert watched.poll() == 1, "unchanged"
    watched.write(json.dumps(fleet(slices=[])))
    assert watched.poll() == 2
    assert watched.seen[-1].endpoints == {}


def test_a_replacement_of_the_same_size_and_time_is_noticed(watched):
    watched.write(json.dumps(fleet()))
    watched.poll()
    stat = watched.path.stat()
    watched.write(json.dumps(fleet()).replace("41234", "41239"))
    os.utime(watched.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert watched.poll() == 2


@pytest.mark.parametrize(
    "bad", ["", "{", '{"version": 1, "models": [', '{"version": 9}', "\x00", "[" * 100_000], ids=lambda text: repr(text[:20])
)
def test_a_bad_file_keeps_the_last_good_fleet_and_complains_once(watched, caplog, bad):
    watched.write(json.dumps(fleet()))
    watched.poll()
    watched.write(bad)
    for _ in range(3):
        assert watched.poll() == 1
    assert len(caplog.messages) == 1
    assert "the last good fleet stays in force" in caplog.messages[0]
    watched.write(json.dumps(fleet()))
    assert watched.poll() == 2


def test_a_file_that_vanishes_keeps_the_last_good_fleet(watched):
    watched.write(json.dumps(fleet()))
    watched.poll()
    watched.path.unlink()
    assert watched.poll() == 1
    assert watched.discovery.loaded


IMAGE = "ImagePull: the image of tiny-a-0 cannot be pulled: not found"
VERDICTS: dict[str, tuple[dict[str, Any], str, str]] = {
    # status → of requests for any variant, of those for variant a
    "nobody said so": ({"observedGeneration": 3}, "", ""),
    "all variants": ({"observedGeneration": 3, "unavailable": IMAGE, "variants": [{"name": "a", "unavailable": IMAGE}]}, IMAGE, IMAGE),
    "one variant": ({"observedGeneration": 3, "variants": [{"name": "a", "unavailable": IMAGE}, {"name": "b"}]}, "", IMAGE),
    "another variant": ({"observedGeneration": 3, "unavailable": IMAGE, "variants": [{"name": "a"}]}, IMAGE, ""),
    "of an older spec": ({"observedGeneration": 2, "unavailable": IMAGE, "variants": [{"name": "a", "unavailable": IMAGE}]}, "", ""),
    "of who knows which spec": ({"unavailable": IMAGE}, IMAGE, ""),
}


@pytest.mark.parametrize(("status", "of_any", "of_a"), VERDICTS.values(), ids=VERDICTS)
def test_the_operators_verdict_makes_a_model_or_a_variant_hopeless(status, of_any, of_a):
    (model,) = parse_snapshot(fleet([changed(MODEL, "status", status)])).models
    assert (model.why_hopeless(None), model.why_hopeless("a"), model.why_hopeless("unheard-of")) == (of_any, of_a, "")


DURATIONS = [("120s", 120), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("90", 90), ("soon", 300), ("", 300), (None, 300)]


@pytest.mark.parametrize(("text", "seconds"), DURATIONS, ids=str)
def test_routing_bounds_are_read(text, seconds):
    spec = {
        "model": {"source": "s"},
        "routing": {"wakeTimeout": text, "maxWaiting": 3},
        "variants": [{"name": "a", "weight": 7}, {"name": "b"}],
    }
    (model,) = parse_snapshot(fleet([changed(MODEL, "spec", spec)])).models
    assert (model.wake_timeout_s, model.max_waiting, model.variants) == (seconds, 3, (("a", 7), ("b", 100)))


def test_a_wake_took_from_the_pods_creation_to_its_routing():
    timeline = {"created": "2026-01-02T03:04:05Z", "routed": "2026-01-02T03:05:35Z"}
    (model,) = parse_snapshot(fleet([changed(MODEL, "status", {"timeline": timeline})])).models
    assert model.wake_s == 90
    (model,) = parse_snapshot(fleet([changed(MODEL, "status", {"timeline": {"created": "2026-01-02T03:04:05Z"}})])).models
    assert model.wake_s is None


# ---------------------------------------------------------------- other people's servers


def slice_of(port_name: str, **labels: str) -> dict[str, object]:
    return {
        "metadata": {"name": "chat-vllm-0", "labels": {"pagoda.dev/model": "chat", "pagoda.dev/variant": "vllm", **labels}},
        "ports": [{"name": port_name, "port": 9000}],
        "endpoints": [{"addresses": ["10.0.0.7"], "conditions": {"serving": True}, "targetRef": {"name": "chat-vllm-0"}}],
    }


@pytest.mark.parametrize("backend", ["vllm", "tgi", "tensorrt-llm"])
def test_a_label_says_what_an_endpoint_speaks(backend):
    fleet = {"version": 1, "endpointSlices": [slice_of("openai", **{"pagoda.dev/backend": backend}), slice_of("grpc")]}
    endpoints = list(parse_snapshot(fleet).endpoints)
    assert [(endpoint.backend, endpoint.relays) for endpoint in endpoints] == [(backend, True), ("pagoda", False)]


def test_a_backend_of_a_newer_operator_is_named_and_not_spoken_to():
    snapshot = parse_snapshot({"version": 1, "endpointSlices": [slice_of("openai", **{"pagoda.dev/backend": "lmdeploy"})]})
    assert snapshot.endpoints == {}
    assert "pagoda.dev/backend is 'lmdeploy'" in snapshot.problems[0]


@pytest.mark.parametrize(
    ("spec", "backends"),
    [
        ({}, ("pagoda",)),
        ({"engine": {"backend": "tgi"}}, ("tgi",)),
        ({"variants": [{"name": "a"}, {"name": "b", "engine": {"backend": "vllm"}}]}, ("pagoda", "vllm")),
        ({"engine": {"backend": "vllm"}, "variants": [{"name": "a"}, {"name": "b", "engine": {"backend": "pagoda"}}]}, ("vllm", "pagoda")),
    ],
)
def test_a_models_variants_have_the_backends_that_its_spec_gives_them(spec, backends):
    model = {"metadata": {"name": "chat"}, "spec": {"model": {"source": "hf://a/b"}, **spec}}
    (found,) = parse_snapshot({"version": 1, "models": [model]}).models
    assert found.backends == backends


@pytest.mark.parametrize(
    ("spec", "quantizations"),
    [
        ({}, ()),
        ({"engine": {"quantization": "int8"}}, ("int8",)),
        ({"variants": [{"name": "a"}, {"name": "b", "engine": {"quantization": "int4"}}]}, ("", "int4")),
    ],
)
def test_a_models_variants_have_the_quantization_that_its_spec_declares(spec, quantizations):
    model = {"metadata": {"name": "chat"}, "spec": {"model": {"source": "hf://a/b"}, **spec}}
    (found,) = parse_snapshot({"version": 1, "models": [model]}).models
    assert found.quantizations == quantizations
