import copy
from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, TINY, carried_out, inference_model, settled, world
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.conditions import Reason
from pagoda_operator.observed import LABEL_MANAGED_BY, LABEL_MODEL, MANAGED_BY, ObjectRef, ref_of
from pagoda_operator.plan import APPLY_ORDER, first_difference, plan

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
    made = plan([inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 2}})], observed, SETTINGS)
    assert made.reasons == ("update Deployment default/chat-default: spec.replicas changed",)


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
    live["spec"]["progressDeadlineSeconds"] = 600
    added = replace(observed, objects={**observed.objects, ref: live})
    assert plan([inference_model()], added, SETTINGS).empty
    live["spec"]["replicas"] = 7
    assert [ref_of(one) for one in plan([inference_model()], added, SETTINGS).apply] == [ref]


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
    ],
)
def test_a_difference_is_a_wanted_field_that_is_not_so(desired: Any, live: Any, path: str | None) -> None:
    assert first_difference(desired, live) == path


# Any history of documents, good and bad, converges in one round and never touches what is not ours.

SPECS = st.one_of(
    st.fixed_dictionaries(
        {"model": st.just({"source": TINY})},
        optional={
            "servedNames": st.lists(st.sampled_from(["a", "b", "c"]), unique=True, min_size=1),
            "engine": st.fixed_dictionaries({}, optional={"dtype": st.sampled_from(["fp32", "bf16"]), "maxRunning": st.integers(1, 2)}),
            "resources": st.fixed_dictionaries(
                {}, optional={"gpus": st.integers(0, 1), "cpu": st.just("500m"), "memory": st.just("1500M")}
            ),
            "scaling": st.fixed_dictionaries({"min": st.integers(1, 3)}),
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
