"""Discovery by list and watch: what it makes of objects, and that no fault of the API server changes what is known."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio.client import Configuration
from scripted_api import MODELS, SLICES, ScriptedApi, scripted_api

from pagoda_router.discovery.api import KubernetesApi
from pagoda_router.discovery.kubernetes import KubernetesDiscovery, Reader, Timing
from pagoda_router.discovery.snapshot import FleetSnapshot
from pagoda_router.errors import ConfigError

QUICK = Timing(relist_s=20, first_backoff_s=0.02, last_backoff_s=0.05, settle_s=0.0)


def model(name: str = "tiny", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "generation": 1, "creationTimestamp": "2026-01-02T03:04:05Z"}
    return {"metadata": metadata, "spec": {"model": {"source": "builtin://tiny"}, **spec}}


def entry(pod: str, address: str, *, terminating: bool = False, serving: bool = False) -> dict[str, Any]:
    conditions = {"ready": False, "serving": serving, "terminating": terminating}
    return {"addresses": [address], "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod, "uid": f"uid-{pod}"}}


def endpoint_slice(
    name: str, *entries: dict[str, Any], family: str = "IPv4", variant: str = "default", model: str = "tiny"
) -> dict[str, Any]:
    labels = {"pagoda.dev/model": model, "pagoda.dev/variant": variant, "app.kubernetes.io/component": "worker"}
    metadata = {"name": name, "namespace": "ns", "labels": labels}
    ports = [{"name": "http", "port": 9001}, {"name": "grpc", "port": 9000}]
    return {"metadata": metadata, "addressType": family, "ports": ports, "endpoints": list(entries)}


def read(*slices: dict[str, Any], models: tuple[dict[str, Any], ...] = (), hosts: dict[str, str] | None = None) -> FleetSnapshot:
    by_name = {item["metadata"]["name"]: item for item in slices}
    reader = Reader()
    reader.hosts = hosts or {}
    return reader.read({item["metadata"]["name"]: item for item in models}, by_name)


def links(snapshot: FleetSnapshot) -> dict[str, tuple[str, bool]]:
    """Pod → address, takes new requests."""
    return {endpoint.name: (endpoint.target, accepting) for endpoint, accepting in snapshot.endpoints.items()}


# ---------------------------------------------------------------- objects

A4, A6 = entry("a", "10.0.0.1"), entry("a", "fd00::1")
LINKS = [
    ("an endpoint that does not serve yet", [endpoint_slice("s", A4)], {"a": ("10.0.0.1:9000", True)}),
    ("one that terminates", [endpoint_slice("s", entry("a", "10.0.0.1", terminating=True))], {"a": ("10.0.0.1:9000", False)}),
    (
        "dual stack is one worker, IPv4 first",
        [endpoint_slice("six", A6, family="IPv6"), endpoint_slice("ten", A4)],
        {"a": ("10.0.0.1:9000", True)},
    ),
    ("IPv6 alone", [endpoint_slice("six", A6, family="IPv6")], {"a": ("[fd00::1]:9000", True)}),
    (
        "several slices of a Service",
        [endpoint_slice("s1", A4), endpoint_slice("s2", entry("b", "10.0.0.2"))],
        {"a": ("10.0.0.1:9000", True), "b": ("10.0.0.2:9000", True)},
    ),
    (
        "in two slices at once, one of which knows better",
        [endpoint_slice("s1", A4), endpoint_slice("s2", entry("a", "10.0.0.1", terminating=True))],
        {"a": ("10.0.0.1:9000", False)},
    ),
    ("an empty slice has no ports", [endpoint_slice("s") | {"ports": None}], {}),
]


@pytest.mark.parametrize(("slices", "expected"), [row[1:] for row in LINKS], ids=[row[0] for row in LINKS])
def test_a_link_to_every_published_worker(slices, expected):
    snapshot = read(*slices)
    assert links(snapshot) == expected
    assert snapshot.problems == ()
    assert all(endpoint.template == "" for endpoint in snapshot.endpoints)


def test_a_slice_on_its_way_out_takes_its_workers_along():
    item = endpoint_slice("s", A4)
    item["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    assert links(read(item)) == {"a": ("10.0.0.1:9000", False)}


def test_the_address_in_use_stays_in_use():
    ten, six = endpoint_slice("ten", A4), endpoint_slice("six", A6, family="IPv6")
    assert links(read(ten, six, hosts={"uid-a": "fd00::1"})) == {"a": ("[fd00::1]:9000", True)}
    assert links(read(ten, hosts={"uid-a": "fd00::1"})) == {"a": ("10.0.0.1:9000", True)}


def test_canaries_and_deleted_models_are_no_models():
    canary, going = model("canary"), model("going")
    canary["metadata"]["labels"] = {"pagoda.dev/canary": "true"}
    going["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    assert [found.name for found in read(models=(canary, going, model("tiny"))).models] == ["tiny"]


@given(st.permutations([endpoint_slice("s1", A4), endpoint_slice("s2", entry("b", "10.0.0.2")), endpoint_slice("s3", A6, family="IPv6")]))
def test_the_order_of_objects_does_not_matter(slices):
    assert read(*slices, models=(model("a"), model("b"))) == read(*reversed(slices), models=(model("b"), model("a")))


def test_what_cannot_be_read_is_named_and_what_changed_is_read_again():
    reader = Reader()
    broken, slices = endpoint_slice("s", A4) | {"ports": []}, {"t": endpoint_slice("t", entry("b", "10.0.0.2"))}
    snapshot = reader.read({"tiny": model()}, {**slices, "s": broken})
    assert snapshot.problems == ("EndpointSlice s is unusable: no port is named grpc",)
    assert links(snapshot) == {"b": ("10.0.0.2:9000", True)}
    healed = reader.read({"tiny": model(servedNames=["chat"])}, {**slices, "s": endpoint_slice("s", A4)})
    assert set(links(healed)) == {"a", "b"}
    assert healed.models[0].served_names == ("chat",)
    assert reader.read({}, slices).models == ()


# ---------------------------------------------------------------- list and watch


class Seen:
    """Snapshots as they come."""

    def __init__(self, discovery: KubernetesDiscovery | None = None) -> None:
        self.snapshots: list[FleetSnapshot] = []
        self.came = asyncio.Event()

    def __call__(self, snapshot: FleetSnapshot) -> None:
        self.snapshots.append(snapshot)
        self.came.set()

    async def until(self, condition: Callable[[FleetSnapshot], bool]) -> None:
        async with asyncio.timeout(15):
            while not (self.snapshots and condition(self.snapshots[-1])):
                self.came.clear()
                await self.came.wait()


@asynccontextmanager
async def discovering(url: str, timing: Timing = QUICK) -> AsyncIterator[tuple[KubernetesDiscovery, Seen]]:
    api, seen = KubernetesApi(Configuration(host=url)), Seen()
    discovery = KubernetesDiscovery(api, "ns", seen, timing=timing)
    task = asyncio.create_task(discovery.run())
    try:
        yield discovery, seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as made:
        made.put(MODELS, model())
        made.put(SLICES, endpoint_slice("s", A4))
        yield made


async def watching(api: ScriptedApi, count: int = 2) -> None:
    async with asyncio.timeout(15):
        while len(api.watches) < count:
            api.watched.clear()
            await api.watched.wait()


async def listed(api: ScriptedApi, more: int = 1) -> None:
    """Until both kinds were listed so many times from now on."""
    wanted = {kind: count + more for kind, count in api.lists.items()}
    async with asyncio.timeout(15):
        while any(api.lists[kind] < wanted[kind] for kind in wanted):
            await asyncio.sleep(0.01)


async def test_objects_are_listed_then_watched_in_one_namespace_with_the_fewest_rights(api):
    async with discovering(api.url) as (discovery, seen):
        await seen.until(lambda s: len(s.models) == 1 and links(s) == {"a": ("10.0.0.1:9000", True)})
        assert discovery.loaded
        await watching(api)
        api.put(SLICES, endpoint_slice("s", A4, entry("b", "10.0.0.2")))
        await seen.until(lambda s: len(s.endpoints) == 2)
        api.put(MODELS, model("other"))
        await seen.until(lambda s: len(s.models) == 2)
        api.delete(SLICES, "s")
        await seen.until(lambda s: not s.endpoints)
    paths = {path for path, _ in api.requests}
    assert paths == {"/apis/pagoda.dev/v1alpha1/namespaces/ns/inferencemodels", "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices"}
    slices = [query for path, query in api.requests if path.endswith(SLICES)]
    assert all(query["labelSelector"] == "app.kubernetes.io/component=worker" for query in slices)
    assert any(query.get("watch") and query["allowWatchBookmarks"] == "true" and query["resourceVersion"] for query in slices)


async def test_nothing_is_handed_on_before_both_kinds_were_read_whole(api):
    api.refuses_with = 403
    async with discovering(api.url) as (discovery, seen):
        async with asyncio.timeout(15):
            while len(api.requests) < 6:
                await asyncio.sleep(0.01)
        assert not discovery.loaded
        assert seen.snapshots == []
        api.refuses_with = None
        await seen.until(lambda s: len(s.models) == len(s.endpoints) == 1)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 503])
async def test_a_refusing_api_server_changes_nothing_and_is_one_line_in_the_log(api, status, caplog):
    caplog.set_level(logging.INFO)
    async with discovering(api.url) as (_, seen):
        await watching(api)
        known = seen.snapshots[-1]
        api.refuses_with = status
        asked = len(api.requests)
        api.expire_watches()
        async with asyncio.timeout(15):
            while len(api.requests) < asked + 8 or api.watches:
                await asyncio.sleep(0.01)
        assert seen.snapshots[-1] is known
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 2, "one for each kind"
        assert f"answered {status}: not for you" in warnings[0]
        api.refuses_with = None
        await watching(api)
        await seen.until(lambda s: s == known)
        assert sum("is read again" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"items": 3}', b'{"items": [{}], "metadata": {"resourceVersion": "1"}}', b"<html>"]
)
async def test_an_answer_that_is_no_list_changes_nothing(api, answer):
    async with discovering(api.url) as (_, seen):
        await watching(api)
        known = seen.snapshots[-1]
        api.answer = answer
        api.expire_watches()
        await listed(api, 3)
        assert seen.snapshots[-1] is known
        api.answer = None
        api.put(MODELS, model("later"))
        await seen.until(lambda s: len(s.models) == 2)


FAULTS: list[tuple[str, Callable[[ScriptedApi], None]]] = [
    ("410", ScriptedApi.expire_watches),
    ("a stream cut in the middle of a line", ScriptedApi.break_watches),
    ("garbage", lambda api: api.send_raw(b"what?\n")),
    ("an event without an object", lambda api: api.send_raw(b'{"type": "ADDED"}\n')),
    ("an object without a name", lambda api: api.send_raw(b'{"type": "ADDED", "object": {"metadata": {}}}\n')),
    ("an error event", lambda api: api.send_raw(b'{"type": "ERROR", "object": {"code": 500, "message": "etcd"}}\n')),
    ("an unheard-of event", lambda api: api.send_raw(b'{"type": "RENAMED", "object": {"metadata": {"name": "x"}}}\n')),
]


@pytest.mark.parametrize("fault", [fault for _, fault in FAULTS], ids=[name for name, _ in FAULTS])
async def test_after_a_watch_that_broke_everything_is_listed_again(api, fault):
    async with discovering(api.url) as (_, seen):
        await watching(api)
        api.deaf = True
        api.delete(SLICES, "s")
        api.put(MODELS, model("other"))
        api.deaf = False
        fault(api)
        async with asyncio.timeout(15):
            while api.watches and api.lists[MODELS] + api.lists[SLICES] < 4:
                await asyncio.sleep(0.01)
        await seen.until(lambda s: not s.endpoints and len(s.models) == 2)
        await watching(api)
        api.put(SLICES, endpoint_slice("s", A4))
        await seen.until(lambda s: len(s.endpoints) == 1)


async def test_a_lost_event_is_healed_by_the_next_list(api):
    async with discovering(api.url, Timing(relist_s=1, settle_s=0.0)) as (_, seen):
        await watching(api)
        api.deaf = True
        api.delete(SLICES, "s")
        await seen.until(lambda s: not s.endpoints)


async def test_a_watch_that_says_nothing_more_is_given_up(api):
    async with discovering(api.url, Timing(relist_s=1, settle_s=0.0)):
        await listed(api, 3)
    watches = [query for _, query in api.requests if query.get("watch")]
    assert {query["timeoutSeconds"] for query in watches} == {"1"}


async def test_what_no_router_acts_on_makes_no_snapshot(api):
    async with discovering(api.url) as (_, seen):
        await watching(api)
        count = len(seen.snapshots)
        changed = deepcopy(model())
        changed["status"] = {"ready": "True", "progress": "40 %"}
        api.put(MODELS, changed)
        api.bookmark()
        api.put(MODELS, model("other"))
        await seen.until(lambda s: len(s.models) == 2)
        assert len(seen.snapshots) == count + 1


async def test_watches_that_end_at_once_are_no_storm_of_lists(api):
    async with discovering(api.url, Timing(relist_s=0, first_backoff_s=0.2, settle_s=0.0)):
        await asyncio.sleep(1.0)
    assert api.lists[MODELS] <= 11


async def test_without_credentials_the_process_says_what_it_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="finds no way to the API server in the pod's service account: Service host/port is not set"):
        await KubernetesApi.connect(None)
    with pytest.raises(ConfigError, match=r"in KUBECONFIG=.*nowhere"):
        await KubernetesApi.connect(str(tmp_path / "nowhere"))
