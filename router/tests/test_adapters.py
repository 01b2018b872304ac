"""Adapters in the router: named like models, sent to workers that have them, loaded and unloaded through /admin/v1/adapters."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet_rig import Rig, generation, model_object, rig
from scripted import Caller, byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker
from test_admin import KnownKeys

from pagoda_router.adapters import DeclaredAdapter
from pagoda_router.backends.adapters import GrpcAdapterCalls
from pagoda_router.discovery.model_object import ModelObject
from pagoda_router.errors import ModelNotFound
from pagoda_router.generation import ModelName
from pagoda_router.http.adapters import AdapterAdmin
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.placement.prefixes import chain_of
from pagoda_router.wire import worker_pb2 as wire

TINY = ModelName("tiny")


class Surface:
    def __init__(self, router: Rig) -> None:
        self.router = router
        self.admin = AdapterAdmin(router.fleet, GrpcAdapterCalls(""))
        self.app = create_app(
            dispatcher=router.dispatcher,
            catalog=router.fleet,
            settings=SurfaceSettings(),
            keyring=KnownKeys("root"),
            adapters=self.admin,
        )

    async def ask(self, method: str, path: str, body: object = b"", *, key: str = "root") -> Caller:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            path, _, query = scope["path"].partition("?")
            await self.app({**scope, "path": path, "query_string": query.encode()}, receive, send)

        return await Caller(app)(method, path, body, headers={"authorization": f"Bearer {key}"})

    async def load(self, name: str, source: str = "file:///sql", model: str = "tiny") -> Caller:
        return await self.ask("POST", "/admin/v1/adapters", {"model": model, "name": name, "source": source})


@asynccontextmanager
async def surface(folder: Path, *workers: ScriptedWorker, models: tuple[ModelObject, ...] = ()) -> AsyncIterator[Surface]:
    for worker in workers:
        worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with rig(folder, *workers) as router:
        if models:
            router.know(*workers, models=models)
        yield Surface(router)


def having(router: Rig, name: str) -> set[str]:
    return {link.endpoint.name for link in router.fleet.links(TINY) if name in link.adapters}


# ---------------------------------------------------------------- named like models


async def test_a_workers_adapter_is_a_model_with_a_parent_and_its_name_goes_to_the_worker(tmp_path: Path):
    async with ScriptedWorker() as worker, surface(tmp_path, worker) as bench:
        worker.tell_adapters({"sql": ("v1", True)})
        await bench.router.until(lambda: having(bench.router, "sql") == {"tiny-default-0"})
        cards = {card["id"]: card for card in (await bench.ask("GET", "/v1/models")).json["data"]}
        assert (cards["sql"]["parent"], cards["sql"]["root"], cards["sql"]["max_model_len"]) == ("tiny", "file:///sql", 2048)
        assert (cards["tiny"]["parent"], cards["tiny"]["root"]) == (None, "tiny")
        asking = asyncio.create_task(bench.ask("POST", "/v1/chat/completions", chat(model="sql", max_tokens=4)))
        submit = await worker.next_submit()
        assert (submit.model, submit.adapter) == ("tiny", "sql")
        worker.tokens(submit.request_id, [72], started=True)
        worker.finish(submit.request_id)
        answer = await asking
        assert (answer.status, answer.json["model"]) == (200, "sql")


async def test_an_unknown_name_is_openais_404_that_lists_adapters_too(tmp_path: Path):
    async with ScriptedWorker() as worker, surface(tmp_path, worker) as bench:
        worker.tell_adapters({"sql": ("v1", True)})
        await bench.router.until(lambda: bool(having(bench.router, "sql")))
        answer = await bench.ask("POST", "/v1/chat/completions", chat(model="sqk"))
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
        assert "there is: sql, tiny" in answer.json["error"]["message"]
        worker.tell_adapters({})
        await bench.router.until(lambda: not having(bench.router, "sql"))
        with pytest.raises(ModelNotFound):
            bench.router.fleet.get("sql")


async def test_a_declared_adapter_exists_without_a_worker_and_a_models_own_name_goes_before(tmp_path: Path):
    declared = model_object(adapters=(DeclaredAdapter("sql", "hf://org/sql"), DeclaredAdapter("other", "hf://org/other")))
    async with surface(tmp_path, models=(declared, model_object("other", created=2))) as bench:
        entry = bench.router.fleet.get("sql")
        assert (entry.adapter, entry.model, entry.parent, entry.root, entry.ready) == ("sql", "tiny", "tiny", "hf://org/sql", False)
        assert bench.router.fleet.get("other").adapter == ""


async def test_of_two_models_with_an_adapter_of_one_name_each_has_its_own_entry(tmp_path: Path):
    """The older model's worker loads it later, and no snapshot comes meanwhile: what was made for the other one must not answer for it."""
    async with ScriptedWorker() as worker, ScriptedWorker(name="other-0", model="other") as later:
        later.use_tokenizer(byte_level_tokenizer().to_str().encode())
        async with surface(tmp_path, worker) as bench:
            fleet = bench.router.fleet
            bench.router.know(worker, later, models=[model_object(), model_object("other", created=2)])
            later.tell_adapters({"sql": ("v1", True)})
            await bench.router.until(lambda: "sql" in fleet.adapters.all() and fleet.get("sql").ready)
            assert (fleet.get("sql").model, fleet.get("sql").parent) == ("other", "other")
            worker.tell_adapters({"sql": ("v1", True)})
            await bench.router.until(lambda: bool(having(bench.router, "sql")))
            (listed,) = (entry for entry in fleet.list() if entry.adapter)
            assert (listed.model, listed.parent) == ("tiny", "tiny")


async def test_a_keys_models_are_adapters_too(tmp_path: Path):
    async with ScriptedWorker() as worker, surface(tmp_path, worker) as bench:
        worker.tell_adapters({"sql": ("v1", True)})
        await bench.router.until(lambda: bool(having(bench.router, "sql")))
        key = next(iter(bench.app._keyring._known.values()))  # type: ignore[attr-defined]
        object.__setattr__(key, "models", frozenset({"tiny"}))
        assert (await bench.ask("POST", "/v1/chat/completions", chat(model="sql"), key="reader")).status == 403
        listed = (await bench.ask("GET", "/v1/models", key="reader")).json["data"]
        assert [card["id"] for card in listed] == ["tiny"]


# ---------------------------------------------------------------- placement


async def test_a_request_goes_to_a_worker_that_has_its_adapter_in_a_slot_before_one_that_has_to_copy_it(tmp_path: Path):
    async with (
        ScriptedWorker(name="one") as one,
        ScriptedWorker(name="two") as two,
        ScriptedWorker(name="none") as none,
        rig(tmp_path, one, two, none) as router,
    ):
        one.tell_adapters({"sql": ("v1", False)})
        two.tell_adapters({"sql": ("v1", True)})
        await router.until(lambda: having(router, "sql") == {"one", "two"})
        for _ in range(3):
            asked = asyncio.create_task(router.collect(generation(40, 4, adapter="sql")))
            submit = await two.next_submit()
            two.tokens(submit.request_id, [5], started=True)
            two.finish(submit.request_id)
            await asked
        assert one.submits.empty()
        assert none.submits.empty()


async def test_prefixes_of_an_adapter_are_known_by_its_version(tmp_path: Path):
    prompt = list(range(100, 164))
    async with ScriptedWorker(name="one") as one, ScriptedWorker(name="two") as two, rig(tmp_path, one, two) as router:
        hashes = chain_of(prompt, 16, label="sql@v2").hashes
        event = wire.CacheEvent(kind=wire.CacheEvent.STORED, model="tiny", block_size=16, hash_version=1, block_hashes=b"".join(hashes))
        two.rows([], cache_events=[event])
        for worker in (one, two):
            worker.tell_adapters({"sql": ("v2", True)})
        await router.until(lambda: having(router, "sql") == {"one", "two"})
        chain = chain_of(prompt, 16, adapter="sql", label=router.fleet.adapters.label(TINY, "sql"))
        assert {link.endpoint.name: link.view(None, chain).cached_tokens for link in router.fleet.links(TINY)} == {"one": 0, "two": 64}
        asked = asyncio.create_task(router.collect(generation(64, 4, first_id=100, adapter="sql")))
        submit = await two.next_submit()
        two.tokens(submit.request_id, [5], started=True)
        two.finish(submit.request_id)
        await asked


# ---------------------------------------------------------------- /admin/v1/adapters


@pytest.mark.parametrize("path", ["/admin/v1/adapters", "/admin/adapters"])
async def test_an_adapter_is_loaded_on_every_worker_listed_and_unloaded(tmp_path: Path, path: str):
    async with ScriptedWorker(name="one") as one, ScriptedWorker(name="two") as two, surface(tmp_path, one, two) as bench:
        loaded = await bench.ask("POST", path, {"model": "tiny", "name": "sql", "source": "file:///sql"})
        assert loaded.status == 200
        assert [each["worker"] for each in loaded.json["workers"]] == ["one", "two"]
        assert one.adapter_calls == two.adapter_calls == [("load", "sql", "file:///sql")]
        await bench.router.until(lambda: having(bench.router, "sql") == {"one", "two"})
        (listed,) = (await bench.ask("GET", path)).json["data"]
        assert (listed["name"], listed["model"], listed["rank"], listed["declared"]) == ("sql", "tiny", 8, False)
        assert [each["resident"] for each in listed["workers"]] == [False, False]
        assert (await bench.ask("DELETE", f"{path}/sql")).json["unloaded"] is True
        await bench.router.until(lambda: not having(bench.router, "sql"))
        gone = await bench.ask("DELETE", f"{path}/sql")
        assert (gone.status, gone.json["error"]["message"]) == (404, "there is no adapter 'sql'; there is: none")


async def test_what_cannot_be_loaded_is_refused_with_the_workers_sentence(tmp_path: Path):
    async with ScriptedWorker() as worker, surface(tmp_path, worker) as bench:
        worker.adapter_problem = "adapter_config.json: use_dora is true"
        refused = await bench.load("sql")
        assert (refused.status, refused.json["error"]["message"]) == (400, "adapter_config.json: use_dora is true")
        assert (await bench.load("tiny")).json["error"]["message"] == "tiny is the name of a model already: choose another"
        assert (await bench.load("sql", model="nobody")).status == 404
        assert (await bench.ask("POST", "/admin/v1/adapters", {"model": "tiny"})).status == 400
        assert (await bench.ask("PUT", "/admin/v1/adapters")).status == 405
        assert (await bench.ask("GET", "/admin/v1/adapters", key="reader")).status == 403


async def test_a_worker_that_comes_later_gets_what_was_loaded_unless_somebody_unloaded_it(tmp_path: Path):
    async with ScriptedWorker(name="one") as one, ScriptedWorker(name="two") as two, surface(tmp_path, one) as bench:
        await bench.load("sql")
        await bench.router.until(lambda: having(bench.router, "sql") == {"one"})
        await bench.admin.look()
        bench.router.know(one, two)
        await bench.router.until_routable(2)
        await bench.admin.look()
        assert two.adapter_calls == [("load", "sql", "file:///sql")]
        await bench.router.until(lambda: having(bench.router, "sql") == {"one", "two"})
        one.tell_adapters({})  # another router's doing
        await bench.router.until(lambda: having(bench.router, "sql") == {"two"})
        await bench.admin.look()
        await bench.admin.look()
        assert one.adapter_calls == [("load", "sql", "file:///sql")], "it would come back for ever"


async def test_what_another_router_unloaded_before_this_one_looked_does_not_come_back(tmp_path: Path):
    async with ScriptedWorker(name="one") as one, surface(tmp_path, one) as bench:
        await bench.load("sql")
        await bench.router.until(lambda: having(bench.router, "sql") == {"one"})
        one.tell_adapters({})
        await bench.router.until(lambda: having(bench.router, "sql") == set())
        for _ in range(3):
            await bench.admin.look()
        assert one.adapter_calls == [("load", "sql", "file:///sql")]


async def test_a_look_before_a_worker_tells_of_what_it_loaded_does_not_forget_it(tmp_path: Path):
    async with ScriptedWorker(name="one") as one, ScriptedWorker(name="two") as two, surface(tmp_path, one) as bench:
        await bench.load("sql")
        await bench.router.until(lambda: having(bench.router, "sql") == {"one"})
        one.tell_adapters({})  # as if it had not told yet
        await bench.router.until(lambda: having(bench.router, "sql") == set())
        await bench.admin.look()
        one.tell_adapters({"sql": ("v1", False)})
        await bench.router.until(lambda: having(bench.router, "sql") == {"one"})
        bench.router.know(one, two)
        await bench.router.until_routable(2)
        await bench.admin.look()
        assert two.adapter_calls == [("load", "sql", "file:///sql")]


async def test_a_declared_adapter_is_the_manifests_to_change(tmp_path: Path):
    declared = model_object(adapters=(DeclaredAdapter("sql", "hf://org/sql"),))
    async with ScriptedWorker() as worker, surface(tmp_path, worker, models=(declared,)) as bench:
        assert "change it there" in (await bench.load("sql")).json["error"]["message"]
        assert "remove it there" in (await bench.ask("DELETE", "/admin/v1/adapters/sql")).json["error"]["message"]
        assert worker.adapter_calls == []
