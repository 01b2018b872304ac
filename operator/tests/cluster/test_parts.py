"""Parts of the cluster executor that need no API server."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plane import kube_bin

from pagoda_operator.cluster import trim
from pagoda_operator.cluster.canary import Canary
from pagoda_operator.cluster.errors import Conflict, Gone, Refused, Silence, api_error
from pagoda_operator.cluster.events import turned
from pagoda_operator.cluster.health import Health
from pagoda_operator.cluster.informer import Informer
from pagoda_operator.cluster.models import Models
from pagoda_operator.cluster.pulls import with_words_of_last_try
from pagoda_operator.cluster.queue import WorkQueue
from pagoda_operator.cluster.resources import NODES, PODS
from pagoda_operator.cluster.status_diff import same_status
from pagoda_operator.cluster.store import Change, Store
from pagoda_operator.observed.world import ObjectRef
from pagoda_operator.settings import SettingsError, parse_settings

REQUIRED = {
    "PAGODA_VERSION": "1.2.3",
    "PAGODA_MASTER_KEY": "0123456789abcdef",
    "PAGODA_POD_NAME": "operator-0",
    "PAGODA_POD_NAMESPACE": "pagoda-system",
}


@pytest.mark.skipif(not kube_bin(), reason="operator/tests/cluster: PAGODA_KUBE_BIN names no folder with etcd and kube-apiserver")
def test_an_api_server_can_be_started() -> None:
    """Without it the other files of this folder are left out."""


# ---------------------------------------------------------------- settings


def test_settings_are_read_once_with_their_defaults() -> None:
    settings = parse_settings(
        {
            **REQUIRED,
            "PAGODA_NAMESPACES": "a, b,a",
            "PAGODA_CANARY": "x/y",
            "PAGODA_HOST_PATHS": "true",
            "PAGODA_OTLP_ENDPOINT": "http://c:4318",
            "PAGODA_CORS_ORIGINS": "https://a.example, https://b.example",
            "HOME": "/",
        }
    )
    assert settings.namespaces == ("a", "b")
    assert settings.canary == ("x", "y")
    assert settings.host_paths
    assert settings.for_manifests().otlp_endpoint == "http://c:4318"
    assert settings.for_manifests().cors_origins == ("https://a.example", "https://b.example")
    assert settings.renew_deadline_s < settings.lease_duration_s
    assert settings.lease_duration_s + settings.retry_s < 15, "the next one looks that often, and is at work within 15 s"
    assert settings.for_manifests().worker_image_reference == "pagoda/worker:1.2.3"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PAGODA_MASTER_KEY", "", "PAGODA_MASTER_KEY is not set"),
        ("PAGODA_OTLP_ENDPOINT", "collector:4318", "is not a URL such as http://collector:4318"),
        ("PAGODA_MASTER_KEY", "short", "at least 16"),
        ("PAGODA_CANARY", "only-a-name", "NAMESPACE/NAME"),
        ("PAGODA_HEALTH_PORT", "99999", "out of range"),
        ("PAGODA_DRAIN_S", "soon", "whole number"),
        ("PAGODA_LEASE_DURATION_S", "0.1", "out of range"),
        ("PAGODA_IMAGE_PULL_POLICY", "Sometimes", "Always, IfNotPresent, Never"),
        ("PAGODA_HOST_PATHS", "perhaps", "TRUE, FALSE"),
        ("PAGODA_NAMESPACE", "a", "did you mean PAGODA_NAMESPACES?"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({**REQUIRED, name: value})
    assert name in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_master_key_is_in_no_text() -> None:
    assert "0123456789abcdef" not in repr(parse_settings(REQUIRED).for_manifests())


# ---------------------------------------------------------------- queue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_key_is_in_work_once_and_comes_back_for_what_happened_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue()
    running = asyncio.Event()
    go_on = asyncio.Event()
    done: list[str] = []

    async def handle(key: str, waited: float) -> None:
        running.set()
        await go_on.wait()
        done.append(key)

    queue.add("a")
    queue.add("a")
    worker = asyncio.create_task(queue.work(handle, concurrency=4))
    await running.wait()
    queue.add("a")
    queue.add("a")
    assert queue.depth == 1
    go_on.set()
    while not queue.idle:
        await asyncio.sleep(0)
    assert done == ["a", "a"]
    worker.cancel()


async def test_no_more_than_so_many_at_once_and_the_oldest_first() -> None:
    queue: WorkQueue[int] = WorkQueue()
    active, most = 0, 0
    done: list[int] = []

    async def handle(key: int, waited: float) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        active -= 1
        done.append(key)

    for key in range(20):
        queue.add(key)
    worker = asyncio.create_task(queue.work(handle, concurrency=3))
    while not queue.idle:
        await asyncio.sleep(0)
    assert most == 3
    assert done == sorted(done)
    worker.cancel()


def test_failures_in_a_row_pause_longer_and_success_forgets_them() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=Clock())
    pauses = [queue.failed("a") for _ in range(12)]
    assert pauses[0] < 1
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses[:5]))
    assert max(pauses) < 80
    queue.succeeded("a")
    assert queue.failed("a") < 1


async def test_a_delayed_key_comes_at_the_earliest_wish() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    queue.add_later("a", 50)
    queue.add_later("a", 5)
    queue.add_later("a", 60)
    seen: list[float] = []

    async def handle(key: str, waited: float) -> None:
        seen.append(clock.now)

    for moment in (1, 5, 50, 60):
        clock.now = moment
        worker = asyncio.create_task(queue.work(handle, concurrency=1))
        for _ in range(10):
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    assert seen == [5]


# ---------------------------------------------------------------- what is known


def item(name: str, version: int, *, model: str = "", **spec: Any) -> dict[str, Any]:
    labels = {"pagoda.dev/model": model} if model else {}
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": str(version), "labels": labels}, "spec": spec}


REF = ObjectRef("Service", "n", "a")


def test_the_newer_version_wins_whichever_way_it_came() -> None:
    store = Store()
    assert store.put(REF, item("a", 5)) is not None
    assert store.put(REF, item("a", 4, x=1)) is None
    assert store.put(REF, item("a", 6)) is None  # nothing changed but its version
    assert store.put(REF, item("a", 7, x=1)) is not None
    assert store.remove(REF, 6) is None  # it was made again meanwhile
    assert store.remove(REF, 8) is not None
    assert len(store) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.sampled_from(["", "m", "k"]), st.booleans()), max_size=30))
def test_the_index_by_owner_always_agrees_with_the_objects(steps: list[tuple[str, int, str, bool]]) -> None:
    store = Store()
    for name, version, model, gone in steps:
        ref = ObjectRef("Service", "n", name)
        if gone:
            store.remove(ref, version)
        else:
            store.put(ref, item(name, version, model=model))
    by_owner = {model: store.of("n", model) for model in ("", "m", "k")}
    assert sum(map(len, by_owner.values())) == len(store)
    for model, objects in by_owner.items():
        assert all((live["metadata"]["labels"].get("pagoda.dev/model") or "") == model for live in objects.values())


def document(name: str, version: int, **changes: Any) -> dict[str, Any]:
    spec = {"model": {"source": "builtin://tiny"}, **changes}
    metadata = {"name": name, "namespace": "n", "uid": f"uid-{name}", "resourceVersion": str(version), "generation": 1}
    return {"apiVersion": "pagoda.dev/v1alpha1", "kind": "InferenceModel", "metadata": metadata, "spec": spec}


def test_a_late_event_does_not_bring_a_deleted_model_back() -> None:
    models = Models(lambda namespace, name: None, ())
    models.hear(None, document("a", 1))
    models.hear("DELETED", document("a", 3))
    models.hear("MODIFIED", document("a", 2))
    assert models.names("n") == []
    models.hear("ADDED", document("a", 4))
    assert models.names("n") == ["a"]


def test_a_name_that_moves_marks_those_who_gain_and_lose_it() -> None:
    marked: list[str | None] = []
    models = Models(lambda namespace, name: marked.append(name), ())
    for number, name in enumerate("abc"):
        models.hear(None, document(name, number + 1, servedNames=["same"] if name != "c" else ["own"]))
    models.claims("n")
    assert models.claims("n").conflicts.keys() == {"n/b"}
    marked.clear()
    models.hear("DELETED", document("a", 9))
    models.claims("n")
    assert "b" in marked
    assert "c" not in marked


def test_a_changed_name_of_an_adapter_is_given_out_anew() -> None:
    models = Models(lambda namespace, name: None, ())
    models.hear(None, document("a", 1))
    models.hear(None, document("b", 2, adapters=[{"name": "a", "source": "pvc://claim/folder"}]))
    assert models.claims("n").conflicts.keys() == {"n/b"}
    models.hear(None, document("b", 3, adapters=[{"name": "free", "source": "pvc://claim/folder"}]))
    assert not models.claims("n").conflicts
    models.hear(None, document("b", 4, adapters=[{"name": "a", "source": "pvc://claim/folder"}]))
    assert models.claims("n").conflicts.keys() == {"n/b"}


def test_a_model_that_comes_or_goes_marks_those_that_name_it() -> None:
    marked: list[str | None] = []
    models = Models(lambda namespace, name: marked.append(name), ())
    models.hear(None, document("asks", 1, routing={"fallback": "small"}))
    models.hear(None, document("other", 2))
    assert models.claims("n").unknown == {"n/asks": {"routing.fallback": "small"}}
    for number, kind in ((3, None), (4, "DELETED")):
        marked.clear()
        models.hear(kind, document("small", number))
        assert bool(models.claims("n").unknown) is (kind == "DELETED")
        assert "asks" in marked
        assert "other" not in marked
    models.hear(None, document("asks", 5, routing={"fallback": "other"}))
    assert not models.claims("n").unknown


def test_the_canary_and_models_of_other_namespaces_are_not_models() -> None:
    models = Models(lambda namespace, name: None, ("n",))
    canary = document("canary", 1)
    canary["metadata"]["labels"] = {"pagoda.dev/canary": "true"}
    models.hear(None, canary)
    elsewhere = document("b", 2)
    elsewhere["metadata"]["namespace"] = "other"
    models.hear(None, elsewhere)
    assert models.everything() == []


def test_a_trimmed_pod_keeps_what_views_are_made_of_and_little_else() -> None:
    whole = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1", "labels": {"a": "b"}, "managedFields": [{}] * 9},
        "spec": {
            "nodeName": "x",
            "containers": [{"name": "worker", "env": [{}] * 30}],
            "volumes": [{}] * 5 + [{"name": "m", "persistentVolumeClaim": {"claimName": "c"}}],
        },
        "status": {
            "phase": "Running",
            "podIP": "1.2.3.4",
            "hostIP": "h",
            "containerStatuses": [{"name": "worker", "image": "i", "ready": True}],
        },
    }
    kept = trim.pod(whole)
    assert kept["spec"] == {
        "nodeName": "x",
        "containers": [{"name": "worker"}],
        "volumes": [{"persistentVolumeClaim": {"claimName": "c"}}],
    }
    assert kept["status"]["containerStatuses"] == [{"name": "worker", "ready": True}]
    assert "managedFields" not in kept["metadata"]


DENIED = 'failed to pull and unpack image "r/x:1": code = NotFound'
SHORT = 'Back-off pulling image "r/x:1"'
WHOLE = f"{SHORT}: ErrImagePull: {DENIED}"
PULLS = {
    # what the kubelet says in turn, and what is known after each
    "an old kubelet": (["ErrImagePull", "ImagePullBackOff", "ImagePullBackOff"], [DENIED, SHORT, SHORT], [DENIED, WHOLE, WHOLE]),
    "a new one": (["ErrImagePull", "ImagePullBackOff"], [DENIED, WHOLE], [DENIED, WHOLE]),
    "another answer at the next try": (
        ["ErrImagePull", "ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"],
        [DENIED, SHORT, "503", SHORT],
        [DENIED, WHOLE, "503", f"{SHORT}: ErrImagePull: 503"],
    ),
    "never seen to fail": (["ContainerCreating", "ImagePullBackOff"], ["", SHORT], ["", SHORT]),
    "pulled at last": (["ErrImagePull", "ContainerCreating", "ImagePullBackOff"], [DENIED, "", SHORT], [DENIED, "", SHORT]),
    "another pod of that name": (["ErrImagePull", "renewed"], [DENIED, SHORT], [DENIED, SHORT]),
}


@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
@pytest.mark.parametrize(("reasons", "said", "known"), PULLS.values(), ids=PULLS)
def test_why_an_image_cannot_be_pulled_is_kept_between_two_tries(reasons: list[str], said: list[str], known: list[str], kind: str) -> None:
    store, ref = Store(with_words_of_last_try), ObjectRef("Pod", "n", "p")
    for version, (reason, message, expected) in enumerate(zip(reasons, said, known, strict=True), start=1):
        uid, reason = ("v", "ImagePullBackOff") if reason == "renewed" else ("u", reason)
        waiting = {"waiting": {"reason": reason, "message": message}}
        metadata = {"name": "p", "namespace": "n", "uid": uid, "resourceVersion": str(version)}
        others = [{"name": "other", "state": {"waiting": {"reason": "ImagePullBackOff", "message": SHORT}}}]
        store.put(ref, trim.pod({"metadata": metadata, "status": {kind: [{"name": "worker", "state": waiting}, *others]}}))
        worker, other = (store.get(ref) or {})["status"][kind]
        assert worker["state"]["waiting"] == {"reason": reason, "message": expected}
        assert other["state"]["waiting"]["message"] == SHORT


# ---------------------------------------------------------------- answers


def test_errors_of_the_api_server_are_named() -> None:
    causes = [
        {"message": 'conflict with "kubectl-edit" using apps/v1', "field": ".spec.x"},
        {"message": 'conflict with "kubectl" with subresource "scale" using apps/v1', "field": ".spec.replicas"},
        {"message": 'conflict with "another-operator"', "field": ".spec.y"},
    ]
    conflict = api_error(409, {"reason": "Conflict", "message": "Apply failed", "details": {"causes": causes}})
    assert isinstance(conflict, Conflict)
    assert conflict.managers == [("kubectl-edit", True), ("kubectl", True), ("another-operator", False)]
    assert isinstance(api_error(410, {}), Gone)
    assert isinstance(api_error(403, {"message": "exceeded quota"}), Refused)


def condition(status: str, reason: str, moment: str = "t") -> dict[str, Any]:
    return {"type": "Ready", "status": status, "reason": reason, "message": "m", "lastTransitionTime": moment}


def test_a_status_that_differs_only_in_moments_is_not_written() -> None:
    assert same_status({"conditions": [condition("True", "Ready", "t1")]}, {"conditions": [condition("True", "Ready", "t2")]})
    assert not same_status({"conditions": [condition("True", "Ready")]}, {"conditions": [condition("False", "Ready")]})


def test_events_tell_of_turns_only() -> None:
    asleep, awake = {"conditions": [condition("False", "Asleep")]}, {"conditions": [condition("True", "Ready")]}
    assert turned({}, asleep) == []
    assert turned(asleep, asleep) == []
    assert turned(asleep, awake) == [("Ready", "True", "Ready", "m")]


# ---------------------------------------------------------------- proof of life


class Silent:
    """An API that takes the canary's beats."""

    async def call(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


async def beat_once(canary: Canary) -> None:
    beating = asyncio.create_task(canary.run())
    await asyncio.sleep(0)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)


async def test_beats_that_the_watch_does_not_show_fail_the_probe() -> None:
    clock = Clock()
    canary = Canary(cast(Any, Silent()), ("n", "canary"), clock=clock)
    shown = {"metadata": {"namespace": "n", "name": "canary"}}
    clock.now = 1
    await beat_once(canary)
    assert canary.trouble() is None
    clock.now = 29
    await beat_once(canary)
    assert canary.trouble() is None
    clock.now = 32
    assert "32 s" in (canary.trouble() or "")
    canary.handled({"metadata": {"namespace": "n", "name": "another"}})
    assert canary.trouble()
    canary.handled(shown)
    assert canary.trouble() is None
    clock.now = 90
    assert canary.trouble() is None  # nothing was written since: the API server is away, not the watch


async def test_a_silent_informer_fails_the_probe_and_an_unreadable_optional_one_does_not() -> None:
    health = Health()
    informer = Informer(cast(Any, Silent()), NODES, None, "", trim.node, Store(), lambda change: None, optional=True)
    health.checks.append(lambda: "silent" if informer.silent_s > 240 else None)
    informer.heard_at -= 300
    assert health.troubles() == ["silent"]
    informer.missing = True
    assert health.troubles() == []


class Told:
    """An API whose list and watch were written down."""

    def __init__(self, *lists: list[dict[str, Any]]) -> None:
        self.lists = list(lists)
        self.listed = 0

    async def get(self, path: str, query: Any = None) -> dict[str, Any]:
        self.listed += 1
        items = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        return {"items": items, "metadata": {"resourceVersion": str(100 + self.listed)}}

    async def watch(self, path: str, query: Any, **_: Any) -> AsyncIterator[dict[str, Any]]:
        if self.listed == 1:
            raise Gone(410, "Expired", "too old resource version")
        await asyncio.Event().wait()
        yield {}


async def test_a_version_that_is_too_old_is_listed_again_and_what_is_gone_is_told() -> None:
    api, store = Told([pod("a", 1), pod("b", 2)], [pod("b", 2), pod("c", 3)]), Store()
    heard: list[Change] = []
    informer = Informer(cast(Any, api), PODS, None, "", trim.pod, store, heard.append)
    running = asyncio.create_task(informer.run())
    while api.listed < 2 or len(heard) < 4:
        await asyncio.sleep(0.01)
    running.cancel()
    assert [(change.ref.name, change.after is not None) for change in heard] == [("a", True), ("b", True), ("c", True), ("a", False)]


class Resting(Told):
    """Nothing ever happens to its objects, and no bookmark tells so."""

    opened = 0

    async def watch(self, path: str, query: Any, *, opened: Any, **_: Any) -> AsyncIterator[dict[str, Any]]:
        self.opened += 1
        if self.opened > 3:
            await asyncio.Event().wait()
        opened()
        raise Silence("nothing")
        yield {}


async def test_a_resource_that_rests_is_neither_stale_nor_listed_again() -> None:
    api = Resting([pod("a", 1)])
    informer = Informer(cast(Any, api), PODS, None, "", trim.pod, Store(), lambda change: None)
    running = asyncio.create_task(informer.run())
    await informer.synced.wait()
    informer.heard_at -= 1000
    while api.opened <= 3:
        await asyncio.sleep(0.01)
    running.cancel()
    assert api.listed == 1
    assert informer.silent_s < 100


def pod(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "uid": f"uid-{name}", "resourceVersion": str(version)}, "spec": {}, "status": {}}
