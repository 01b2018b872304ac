import copy
from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, TINY, carried_out, inference_model, settled, world
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.conditions import Reason
from pagoda_operator.errors import InvalidManifest
from pagoda_operator.labels import LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY
from pagoda_operator.manifest.spec import key_of, parse
from pagoda_operator.observed.world import MADE, ObjectRef, Observed, ref_of
from pagoda_operator.plan.claims import Claims, claim_names
from pagoda_operator.plan.differences import first_difference
from pagoda_operator.plan.plan import is_ours, plan, plan_model, plan_namespace
from pagoda_operator.render.kinds import APPLY_ORDER
from pagoda_operator.render.objects import model_objects

BROKEN = {"model": {"source": TINY}, "engine": {"dtype": "int8"}}


def foreign(kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": {"team": "other"}}, "spec": {}}


def ours(kind: str, name: str, model: str | None = None) -> dict[str, Any]:
    labels = {LABEL_MANAGED_BY: MANAGED_BY} | ({LABEL_MODEL: model} if model else {})
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": {}}


def test_the_first_model_brings_the_router_and_what_pods_need_comes_first() -> None:
    made = plan([inference_model()], world(), SETTINGS)
    kinds = [document["kind"] for document in made.apply]
    assert kinds == sorted(kinds, key=APPLY_ORDER.index)
    names = {document["metadata"]["name"] for document in made.apply if document["kind"] == "Deployment"}
    assert names == {"pagoda-router", "chat-default"}
    assert len(made.reasons) == len(made.apply)
    assert "create Deployment default/chat-default: InferenceModel default/chat wants it" in made.reasons


def test_a_second_model_shares_the_router() -> None:
    one, two = inference_model("one", age_s=9), inference_model("two")
    made = plan([one, two], settled([one]), SETTINGS)
    assert {document["metadata"]["name"] for document in made.apply} == {"two-default"}
    assert made.delete == ()


def test_models_of_two_namespaces_have_a_router_each() -> None:
    made = plan([inference_model(namespace="a"), inference_model(namespace="b")], world(), SETTINGS)
    assert {ref_of(one).namespace for one in made.apply if one["metadata"]["name"] == "pagoda-router"} == {"a", "b"}


def test_a_change_updates_only_what_differs_and_says_which_field() -> None:
    observed = settled([inference_model()])
    made = plan([inference_model(spec={"model": {"source": TINY}, "rollout": {"strategy": "replace"}})], observed, SETTINGS)
    assert made.reasons == ("update Deployment default/chat-default: spec.strategy.rollingUpdate.maxSurge changed",)


def test_a_removed_field_is_a_change_too() -> None:
    observed = settled([inference_model(spec={"model": {"source": TINY}, "resources": {"cpu": "2"}})])
    (changed,) = plan([inference_model()], observed, SETTINGS).apply
    assert changed["metadata"]["name"] == "chat-default"


def test_a_deleted_model_takes_its_objects_and_the_last_one_the_router() -> None:
    one, two = inference_model("one"), inference_model("two")
    observed = settled([one, two])
    assert {ref.name for ref in plan([one], observed, SETTINGS).delete} == {"two-default"}
    everything = plan([], observed, SETTINGS).delete
    assert set(everything) == set(observed.objects)
    assert everything[0].kind == "Deployment"


def test_an_object_that_vanished_is_made_again() -> None:
    observed = settled([inference_model()])
    gone = ObjectRef("Deployment", "default", "chat-default")
    without = replace(observed, objects={ref: live for ref, live in observed.objects.items() if ref != gone})
    assert [ref_of(one) for one in plan([inference_model()], without, SETTINGS).apply] == [gone]


def test_an_edit_by_hand_is_undone_and_an_addition_by_others_is_left() -> None:
    observed = settled([inference_model()])
    ref = ObjectRef("Deployment", "default", "chat-default")
    live = copy.deepcopy(dict(observed.objects[ref]))
    live["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "1"}
    live["spec"]["minReadySeconds"] = 5
    added = replace(observed, objects={**observed.objects, ref: live})
    assert plan([inference_model()], added, SETTINGS).empty
    live["spec"]["revisionHistoryLimit"] = 7
    assert [ref_of(one) for one in plan([inference_model()], added, SETTINGS).apply] == [ref]


def replicas_of(spec: dict[str, Any]) -> Any:
    (document,) = (one for one in plan([inference_model(spec=spec)], world(), SETTINGS).apply if ref_of(one) == WORKER)
    return document["spec"]["replicas"]


WORKER = ObjectRef("Deployment", "default", "chat-default")


@pytest.mark.parametrize(
    ("scaling", "at_first", "fixed"),
    [
        ({}, 1, 1),
        ({"min": 3}, 3, 3),
        ({"min": 1, "max": 4}, 1, None),
        ({"min": 0}, 0, None),
        ({"mode": "external", "replicas": 5}, 5, 5),
        ({"mode": "external", "replicas": 0}, 0, 0),
        ({"mode": "external", "min": 2, "max": 9}, 2, 2),
    ],
    ids=str,
)
def test_a_new_deployment_has_replicas_and_then_the_scaler_alone_writes_them(scaling: dict[str, Any], at_first: int, fixed: Any) -> None:
    spec = {"model": {"source": TINY}, "scaling": scaling}
    assert replicas_of(spec) == at_first
    assert plan([inference_model(spec=spec)], world(), SETTINGS).replicas == {WORKER: fixed}
    observed = settled([inference_model(spec=spec)])
    scaled = {ref: {**live, "spec": {**live["spec"], "replicas": 77}} if ref == WORKER else live for ref, live in observed.objects.items()}
    assert plan([inference_model(spec=spec)], world(*scaled.values()), SETTINGS).empty
    (changed,) = plan([inference_model(spec=spec | {"engine": {"dtype": "fp32"}})], world(*scaled.values()), SETTINGS).apply
    assert "replicas" not in changed["spec"]


def test_the_routers_replicas_are_the_installations_and_may_be_an_autoscalers() -> None:
    observed = settled([inference_model()])
    more = plan([inference_model()], observed, replace(SETTINGS, router_replicas=3))
    assert more.reasons == ("update Deployment default/pagoda-router: spec.replicas changed",)
    assert plan([inference_model()], observed, replace(SETTINGS, router_replicas=0)).empty


def test_an_invalid_edit_keeps_what_runs() -> None:
    observed = settled([inference_model()])
    made = plan([inference_model(spec=BROKEN)], observed, SETTINGS)
    assert made.empty
    assert [problem.field for problem in made.invalid["default/chat"].problems] == ["spec.engine.dtype"]
    assert made.models == ()


def test_an_invalid_edit_of_one_model_does_not_hold_up_another() -> None:
    one, two = inference_model("one"), inference_model("two")
    observed = settled([one, two])
    made = plan([inference_model("one", spec=BROKEN), inference_model("two", spec=None)], observed, SETTINGS)
    assert made.empty
    made = plan([inference_model("one", spec=BROKEN)], observed, SETTINGS)
    assert {ref.name for ref in made.delete} == {"two-default"}


def test_an_invalid_first_version_makes_nothing() -> None:
    assert plan([inference_model(spec=BROKEN)], world(), SETTINGS).empty


def test_a_foreign_object_of_the_wanted_name_is_left_and_told() -> None:
    made = plan([inference_model()], world(foreign("Deployment", "chat-default")), SETTINGS)
    assert ObjectRef("Deployment", "default", "chat-default") not in map(ref_of, made.apply)
    assert made.conflicts["default/chat"].reason is Reason.FOREIGN_OBJECT
    assert "Deployment default/chat-default exists" in made.conflicts["default/chat"].message


@pytest.mark.parametrize("model", [None, "chat", "gone"])
def test_what_carries_our_label_and_was_not_made_by_us_is_never_deleted(model: str | None) -> None:
    """Labels are copied easily: by `kubectl expose`, or from one manifest into another."""
    copied = ours("Service", "public", model)
    observed = settled([inference_model()])
    observed = replace(observed, objects=dict(observed.objects) | {ref_of(copied): copied | {MADE: False}})
    assert plan([inference_model()], observed, SETTINGS).empty
    assert ref_of(copied) not in plan([], observed, SETTINGS).delete
    observed = replace(observed, objects=dict(observed.objects) | {ref_of(copied): copied | {MADE: True}})
    assert plan([inference_model()], observed, SETTINGS).delete == (ref_of(copied),)


def test_what_came_back_from_a_backup_is_written_once_more_and_is_ours_again() -> None:
    observed = settled([inference_model()])
    restored = ObjectRef("Service", "default", "chat-default")
    observed = replace(observed, objects=dict(observed.objects) | {restored: {**observed.objects[restored], MADE: False}})
    made = plan([inference_model()], observed, SETTINGS)
    assert [ref_of(each) for each in made.apply] == [restored]


def test_a_foreign_router_is_told_to_every_model_of_its_namespace() -> None:
    documents = [inference_model("one"), inference_model("two"), inference_model("far", namespace="far")]
    made = plan(documents, world(foreign("Service", "pagoda-router")), SETTINGS)
    assert set(made.conflicts) == {"default/one", "default/two"}


def test_objects_of_ours_that_nobody_wants_go_and_kinds_that_we_do_not_make_stay() -> None:
    left = world(ours("Deployment", "old-default", "old"), ours("Service", "stray"), ours("Secret", "pagoda-session"))
    assert set(plan([], left, SETTINGS).delete) == {
        ObjectRef("Deployment", "default", "old-default"),
        ObjectRef("Service", "default", "stray"),
    }


def names_of(*documents: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return dict(plan(documents, world(), SETTINGS).served_names)


def serving(name: str, names: list[str], age_s: int, namespace: str = "default") -> dict[str, Any]:
    return inference_model(name, {"model": {"source": TINY}, "servedNames": names}, age_s=age_s, namespace=namespace)


def test_the_older_model_keeps_a_name_that_two_claim() -> None:
    young, old = serving("young", ["chat", "fast"], age_s=1), serving("old", ["chat"], age_s=100)
    assert names_of(young, old) == {"default/old": ("chat",), "default/young": ("fast",)}
    made = plan([young, old], world(), SETTINGS)
    assert made.conflicts.keys() == {"default/young"}
    assert made.conflicts["default/young"].reason is Reason.NAME_TAKEN
    assert "chat (by old)" in made.conflicts["default/young"].message
    assert "young-default" in {document["metadata"]["name"] for document in made.apply}


def test_an_adapter_that_another_model_answers_for_is_said_of_the_model_that_declares_it() -> None:
    def adapting(name: str, adapters: list[str], age_s: int) -> dict[str, Any]:
        declared = [{"name": each, "source": f"pvc://adapters/{each}"} for each in adapters]
        return inference_model(name, {"model": {"source": TINY}, "servedNames": [name], "adapters": declared}, age_s=age_s)

    old, young, youngest = adapting("old", ["sql", "chat"], 100), adapting("young", ["sql", "own"], 10), serving("chat", ["chat"], 1)
    made = plan([youngest, young, old], world(), SETTINGS)
    assert made.conflicts.keys() == {"default/old", "default/young"}
    assert "chat (by chat)" in made.conflicts["default/old"].message
    assert "sql (by old)" in made.conflicts["default/young"].message
    assert made.served_names["default/chat"] == ("chat",)
    assert not plan([old, adapting("young", ["own"], 10)], world(), SETTINGS).conflicts


def test_a_model_without_a_date_is_the_youngest() -> None:
    fresh = serving("a", ["chat"], age_s=0)
    del fresh["metadata"]["creationTimestamp"]
    assert names_of(fresh, serving("b", ["chat"], age_s=1)) == {"default/b": ("chat",), "default/a": ()}


def test_of_two_equally_old_the_name_decides() -> None:
    assert names_of(serving("b", ["chat"], 5), serving("a", ["chat"], 5)) == {"default/a": ("chat",), "default/b": ()}


def test_namespaces_do_not_share_names() -> None:
    assert names_of(serving("a", ["chat"], 1), serving("a", ["chat"], 2, "other")) == {"default/a": ("chat",), "other/a": ("chat",)}


@pytest.mark.parametrize(
    ("desired", "live", "path"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
        ({"a": 1}, {}, "a"),
        ({"a": {}}, {}, None),
        ({"a": []}, {}, None),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 3}]}, None),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "a[0].b"),
        ({"a": [1]}, {"a": [1, 2]}, "a"),
        ({"a": {"b": 1}}, {"a": None}, "a"),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "Z"}, {"name": "A", "value": "1"}]}, None),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}]}, "env[0].value"),
        ({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "Z"}]}, "env[0]"),
        ({"volumeMounts": [{"name": "a", "mountPath": "/a"}]}, {"volumeMounts": [{"name": "a", "mountPath": "/b"}]}, "volumeMounts[0]"),
        ({"ports": [{"port": 1, "name": "a"}]}, {"ports": [{"port": 2, "name": "b"}, {"port": 1, "name": "a"}]}, None),
        ({"ingress": [{"ports": [{"port": 1}]}]}, {"ingress": [{"ports": [{"port": 1}, {"port": 2}]}]}, "ingress[0].ports"),
        ({"ingress": []}, {"ingress": [{}]}, "ingress"),
    ],
)
def test_a_difference_is_a_wanted_field_that_is_not_so(desired: Any, live: Any, path: str | None) -> None:
    assert first_difference(desired, live) == path


# Any history of documents, good and bad, converges in one round and never touches what is not ours.

SOURCES = st.sampled_from(
    [
        {"source": TINY},
        {"source": "hf://org/name"},
        {"source": "hf://org/name", "cache": {"size": "2Gi"}},
        {"source": "s3://bucket/name", "cache": {"claim": "models"}},
        {"source": "pvc://models/name"},
        {"source": "file:///models/name"},
    ]
)
SPECS = st.one_of(
    st.fixed_dictionaries(
        {"model": SOURCES},
        optional={
            "servedNames": st.lists(st.sampled_from(["a", "b", "c"]), unique=True, min_size=1),
            "engine": st.fixed_dictionaries({}, optional={"dtype": st.sampled_from(["fp32", "bf16"]), "maxRunning": st.integers(1, 2)}),
            "resources": st.fixed_dictionaries(
                {}, optional={"gpus": st.integers(0, 1), "cpu": st.just("500m"), "memory": st.just("1500M")}
            ),
            "scaling": st.fixed_dictionaries({"min": st.integers(0, 3)}),
            "variants": st.lists(
                st.fixed_dictionaries(
                    {"name": st.sampled_from(["default", "canary"])}, optional={"engine": st.just({"dtype": "fp16"}), "weight": st.just(5)}
                ),
                min_size=1,
                unique_by=lambda variant: variant["name"],
            ),
            "rollout": st.just({"strategy": "replace"}),
        },
    ),
    st.just(BROKEN),
)
MODELS = st.builds(
    lambda name, namespace, spec, age_s: inference_model(name, spec, namespace=namespace, age_s=age_s),
    st.sampled_from(["a", "b", "pagoda-router"]),
    st.sampled_from(["default", "team"]),
    SPECS,
    st.integers(0, 3),
)
DOCUMENTS = st.lists(MODELS, max_size=4, unique_by=lambda document: (document["metadata"]["namespace"], document["metadata"]["name"]))
FOREIGN = st.lists(
    st.builds(foreign, st.sampled_from(["Deployment", "Service"]), st.sampled_from(["a-default", "pagoda-router", "web"])),
    max_size=2,
    unique_by=lambda document: (document["kind"], document["metadata"]["name"]),
)


@given(DOCUMENTS, DOCUMENTS, FOREIGN)
def test_any_change_converges_in_one_round(before: list[dict[str, Any]], after: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    observed = world(*others)
    for documents in (before, after):
        observed = carried_out(observed, plan(documents, observed, SETTINGS))
        assert plan(documents, observed, SETTINGS).empty


@given(DOCUMENTS, DOCUMENTS, FOREIGN)
def test_foreign_objects_are_never_touched(before: list[dict[str, Any]], after: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    observed = world(*others)
    untouchable = {ref_of(document) for document in others}
    for documents in (before, after, []):
        made = plan(documents, observed, SETTINGS)
        assert untouchable.isdisjoint(map(ref_of, made.apply))
        assert untouchable.isdisjoint(made.delete)
        observed = carried_out(observed, made)
    assert set(observed.objects) == untouchable


@given(DOCUMENTS, DOCUMENTS)
def test_a_running_model_whose_edit_is_invalid_loses_nothing(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    observed = settled(before)
    made = plan(after, observed, SETTINGS)
    kept = {key.partition("/")[::2] for key in made.invalid}
    for ref in made.delete:
        labels = observed.objects[ref]["metadata"]["labels"]
        assert (ref.namespace, labels.get(LABEL_MODEL)) not in kept


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(documents: list[dict[str, Any]], random: Any) -> None:
    shuffled = random.sample(documents, len(documents))
    one, other = plan(documents, world(), SETTINGS), plan(shuffled, world(), SETTINGS)
    assert (one.apply, one.served_names, one.conflicts) == (other.apply, other.served_names, other.conflicts)


@given(DOCUMENTS)
def test_a_name_in_a_namespace_belongs_to_one_model(documents: list[dict[str, Any]]) -> None:
    made = plan(documents, world(), SETTINGS)
    claimed = [(key.partition("/")[0], name) for key, names in made.served_names.items() for name in names]
    assert len(claimed) == len(set(claimed))
    wanted = {(model.namespace, name) for model in made.models for name in model.spec.served_names}
    assert set(claimed) == wanted


# One model or one namespace at a time comes to the same as the whole world at once.


def claims_of(documents: list[dict[str, Any]]) -> Claims:
    models, invalid = [], []
    for document in documents:
        try:
            models.append(parse(document))
        except InvalidManifest:
            invalid.append(key_of(document))
    return claim_names(models, invalid)


def part_of(observed: Observed, namespace: str, model: str) -> Observed:
    """As a cluster's informers hand it over: what carries the model's label ("": what carries none), and foreign objects."""

    def concerns(live: Any) -> bool:
        return not is_ours(live) or live["metadata"]["labels"].get(LABEL_MODEL, "") == model

    return world(*(live for ref, live in observed.objects.items() if ref.namespace == namespace and concerns(live)))


@given(DOCUMENTS, DOCUMENTS, FOREIGN)
def test_the_parts_of_a_plan_are_the_whole(before: list[dict[str, Any]], after: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    observed = carried_out(world(*others), plan(before, world(*others), SETTINGS))
    # a model that is gone has no plan of its own: its objects go with it
    gone = {document["metadata"]["name"] for document in before} - {document["metadata"]["name"] for document in after}
    observed = world(*(live for live in observed.objects.values() if live["metadata"]["labels"].get(LABEL_MODEL) not in gone))
    whole, claims = plan(after, observed, SETTINGS), claims_of(after)
    namespaces = ("default", "team")
    parts = [plan_namespace(namespace, claims, part_of(observed, namespace, ""), SETTINGS) for namespace in namespaces]
    for document in after:
        metadata = document["metadata"]
        parts.append(plan_model(document, claims, part_of(observed, metadata["namespace"], metadata["name"]), SETTINGS))
    leftovers = {ref for ref in whole.delete if not any(ref in part.delete for part in parts)}
    known = {(document["metadata"]["namespace"], document["metadata"]["name"]) for document in after}
    assert all((ref.namespace, observed.objects[ref]["metadata"]["labels"].get(LABEL_MODEL)) not in known for ref in leftovers)
    assert sorted(map(ref_of, whole.apply)) == sorted(ref_of(one) for part in parts for one in part.apply)
    assert {**whole.conflicts} == {key: conflict for part in parts for key, conflict in part.conflicts.items()}
    assert whole.replicas == {ref: count for part in parts for ref, count in part.replicas.items()}
    assert whole.invalid.keys() == {key for part in parts for key in part.invalid}


def test_a_plan_of_one_model_knows_which_others_there_are() -> None:
    asks, small = inference_model("asks", {"model": {"source": TINY}, "routing": {"fallback": "small"}}), inference_model("small")
    for documents, unknown in (([asks], {"default/asks": {"routing.fallback": "small"}}), ([asks, small], {})):
        assert plan_model(asks, claims_of(documents), world(), SETTINGS).unknown_models == unknown
        assert plan(documents, world(), SETTINGS).unknown_models == unknown


def test_one_model_costs_the_same_whatever_else_there_is() -> None:
    """Only its own objects and those of the names that it wants are looked at."""

    class Counting(dict[ObjectRef, Any]):
        looked_at = 0

        def get(self, key: Any, default: Any = None) -> Any:
            Counting.looked_at += 1
            return super().get(key, default)

    document = inference_model()
    observed = settled([document])
    objects = Counting(part_of(observed, "default", "chat").objects)
    assert plan_model(document, claims_of([document]), replace(observed, objects=objects), SETTINGS).empty
    assert Counting.looked_at == len(model_objects(parse(document), SETTINGS))


def test_the_canary_is_no_model() -> None:
    canary = inference_model("pagoda-canary")
    canary["metadata"]["labels"] = {"pagoda.dev/canary": "true"}
    assert plan([canary], world(), SETTINGS).empty
    assert plan([canary], world(), SETTINGS).models == ()
    assert plan_model(canary, claims_of([canary]), world(), SETTINGS).empty
    assert {ref.name for ref in map(ref_of, plan([canary, inference_model()], world(), SETTINGS).apply)}.isdisjoint(
        {"pagoda-canary-default"}
    )


def test_a_model_on_its_way_out_gets_nothing_made_again() -> None:
    leaving = inference_model()
    leaving["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    made = plan_model(leaving, claims_of([]), world(), SETTINGS)
    assert made.empty
    assert made.models == ()


def test_an_object_on_its_way_out_is_waited_for() -> None:
    observed = settled([inference_model()])
    live = copy.deepcopy(dict(observed.objects[WORKER]))
    live["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
    live["spec"]["revisionHistoryLimit"] = 9
    assert plan([inference_model()], world(*{**observed.objects, WORKER: live}.values()), SETTINGS).empty


def fetched(**model: Any) -> dict[str, Any]:
    return inference_model(spec={"model": {"source": "hf://org/name", **model}})


def test_a_cache_stays_while_its_model_does_and_goes_with_it() -> None:
    cache = ObjectRef("PersistentVolumeClaim", "default", "chat-cache")
    observed = settled([fetched(cache={"size": "5Gi"})])
    assert cache in observed.objects
    for later in (fetched(), fetched(cache={"claim": "other"}), inference_model(), inference_model(spec=BROKEN)):
        assert cache not in plan([later], observed, SETTINGS).delete
    assert cache in plan([], observed, SETTINGS).delete


@pytest.mark.parametrize(("written", "stored"), [("1Gi", "5Gi"), ("5Gi", "5Gi"), ("5120Mi", "5Gi"), ("6Gi", "6Gi"), ("6500M", "6500M")])
def test_a_cache_grows_and_never_shrinks(written: str, stored: str) -> None:
    observed = settled([fetched(cache={"size": "5Gi", "storageClass": "slow"})])
    changed = plan([fetched(cache={"size": written, "storageClass": "fast"})], observed, SETTINGS)
    after = carried_out(observed, changed).objects[ObjectRef("PersistentVolumeClaim", "default", "chat-cache")]["spec"]
    assert after["resources"]["requests"]["storage"] == stored
    assert after["storageClassName"] == "slow"
    assert changed.empty == (stored == "5Gi")


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"source": "file:///models/chat"}},
        {"model": {"source": TINY}, "adapters": [{"name": "sql", "source": "file:///adapters/sql"}]},
        {"model": {"source": TINY}, "engine": {"speculative": {"method": "draft", "draft": "file:///models/small"}}},
    ],
    ids=["of a model", "of an adapter", "of a draft model"],
)
def test_a_folder_of_the_node_is_refused_where_the_installation_does_not_allow_it_and_what_runs_is_left(spec: dict[str, Any]) -> None:
    document = inference_model(spec=spec)
    made = plan([document], world(), SETTINGS)
    assert "chat-default" not in {one["metadata"]["name"] for one in made.apply}
    assert made.conflicts["default/chat"].reason is Reason.HOST_PATH_FORBIDDEN
    allowed = replace(SETTINGS, host_paths=True)
    assert plan([document], world(), allowed).conflicts == {}
    running = carried_out(world(), plan([document], world(), allowed))
    assert plan([document], running, SETTINGS).empty


def test_variants_come_and_go_without_touching_each_other() -> None:
    def with_variants(*names: str) -> dict[str, Any]:
        return inference_model(spec={"model": {"source": TINY}, "variants": [{"name": name} for name in names]})

    observed = settled([with_variants("default")])
    both = plan([with_variants("default", "canary")], observed, SETTINGS)
    assert {ref_of(one).name for one in both.apply} == {"chat-canary"}
    back = plan([with_variants("default")], carried_out(observed, both), SETTINGS)
    assert ({ref.name for ref in back.delete}, back.apply) == ({"chat-canary"}, ())


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_any_history_of_specs_ends_in_the_objects_of_the_last_one(
    first: list[dict[str, Any]], second: list[dict[str, Any]], last: list[dict[str, Any]]
) -> None:
    allowed, observed = replace(SETTINGS, host_paths=True), world()
    for documents in (first, second, last):
        observed = carried_out(observed, plan(documents, observed, allowed))
    broken = {key.partition("/")[2] for key in plan(last, world(), allowed).invalid}

    def compared(objects: Any) -> Any:
        """Caches outlive edits, replicas are the scaler's, and an invalid spec keeps what it finds."""
        return {
            ref: {**live, "spec": {name: value for name, value in live.get("spec", {}).items() if name != "replicas"}}
            for ref, live in objects.items()
            if ref.kind != "PersistentVolumeClaim" and not (broken and live["metadata"]["labels"].get(LABEL_MODEL, "") in {"", *broken})
        }

    assert compared(observed.objects) == compared(settled(last, allowed).objects)
