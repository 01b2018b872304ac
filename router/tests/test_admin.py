"""What the console reads on the public port: who may, and what it is told."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fleet_rig import Rig, generation, model_object, rig
from scripted import Caller, byte_level_tokenizer
from scripted_worker import ScriptedWorker

from pagoda_router.generation import ModelName, RequestClass
from pagoda_router.http.admin import admin_routes
from pagoda_router.http.app import create_app
from pagoda_router.http.asgi import ASGIApp
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.key import ApiKey, digest_of
from pagoda_router.keys.keyring import Keyring
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer

TINY = ModelName("tiny")
PATHS = ["fleet", "queue", "lanes", "decisions", "traces", "trace?id=none"]


class KnownKeys(Keyring):
    """With one key more than the bootstrap's, in no store."""

    def __init__(self, bootstrap: str | None) -> None:
        super().__init__(bootstrap, None, calendar=time.time)
        self._known = {digest_of(b"reader"): ApiKey(id="key-1", prefix="reader", name="reader", tenant="blue")}


@asynccontextmanager
async def surface(folder: Path, *workers: ScriptedWorker, api_key: str | None = None) -> AsyncIterator[tuple[Rig, ASGIApp]]:
    ring = TraceRing(10)
    async with rig(folder, *workers) as router:
        yield (
            router,
            create_app(
                dispatcher=router.dispatcher,
                catalog=router.fleet,
                settings=SurfaceSettings(),
                keyring=KnownKeys(api_key),
                tracer=Tracer(ring, None, clock=time.monotonic, calendar=time.time),
                guarded_routes=admin_routes(router.fleet, router.dispatcher, ring, time.monotonic),
            ),
        )


async def get(app: ASGIApp, path: str, key: str | None = None, method: str = "GET") -> Caller:
    path, _, query = f"/admin/v1/{path}".partition("?")

    async def with_query(scope, receive, send):  # type: ignore[no-untyped-def]
        await app({**scope, "query_string": query.encode()}, receive, send)

    return await Caller(with_query)(method, path, headers={} if key is None else {"authorization": f"Bearer {key}"})


ACCESS = [
    # API key of the server, sent → status, code
    (None, None, 200, None),
    ("root", None, 401, "missing_api_key"),
    ("root", "wrong", 401, "invalid_api_key"),
    ("root", "reader", 403, None),
    ("root", "root", 200, None),
]


@pytest.mark.parametrize(("api_key", "sent", "status", "code"), ACCESS)
async def test_only_an_admin_key_reads_the_fleet_unless_none_is_needed(tmp_path, api_key, sent, status, code):
    async with surface(tmp_path, api_key=api_key) as (_, app):
        for path in PATHS:
            told = await get(app, path, sent)
            assert told.status == (404 if status == 200 and path.startswith("trace?") else status)
            assert code is None or told.error["code"] == code
            assert status != 200 or told.headers["cache-control"] == "no-store"


async def test_nothing_but_reading_is_taken(tmp_path):
    async with surface(tmp_path) as (_, app):
        for path in PATHS:
            assert (await get(app, path, method="POST")).status == 405


async def test_what_waits_is_told_by_class_and_tenant_with_what_drains_and_what_is_promised(tmp_path):
    async with ScriptedWorker(capacity_tokens=64) as worker, surface(tmp_path, worker) as (router, app):
        throughput = RequestClass.THROUGHPUT
        asked = [("blue", RequestClass.LATENCY), ("blue", RequestClass.LATENCY), ("red", RequestClass.LATENCY), ("red", throughput)]
        tasks = []
        for tenant, request_class in asked:
            tasks.append(asyncio.create_task(router.collect(generation(20, 40, tenant=tenant, request_class=request_class))))
            await asyncio.sleep(0)
        await worker.next_submit()
        told = (await get(app, "queue")).json["models"]["tiny"]
        assert told["credits"] == {"capacityTokens": 64, "availableTokens": 0, "reservedTokens": 64}
        assert (told["requests"], told["tokens"], told["mostTokens"]) == (3, 192, 10_000)
        assert [(each["class"], each["requests"], each["tokens"]) for each in told["classes"]] == [
            ("latency", 2, 128),
            ("throughput", 1, 64),
        ]
        assert [(each["drainTokensPerS"], each["waitS"]) for each in told["classes"]] == [(0, None), (0, None)]
        tenants = {(each["tenant"], each["class"]): (each["requests"], each["tokens"]) for each in told["tenants"]}
        assert tenants == {("blue", "latency"): (1, 64), ("red", "latency"): (1, 64), ("red", "throughput"): (1, 64)}
        for task in tasks:
            task.cancel()


async def test_a_model_that_nobody_asked_for_has_an_empty_line(tmp_path):
    async with surface(tmp_path) as (router, app):
        router.know(models=[model_object()])
        told = (await get(app, "queue")).json["models"]["tiny"]
        assert (told["requests"], told["tokens"], told["tenants"]) == (0, 0, [])
        assert told["credits"] == {"capacityTokens": 0, "availableTokens": 0, "reservedTokens": 0}


async def test_the_fleet_says_who_drains_who_is_shunned_and_what_speaks_there(tmp_path):
    async with ScriptedWorker() as worker, surface(tmp_path, worker) as (router, app):
        (told,) = (await get(app, "fleet")).json["workers"]
        assert (told["draining"], told["shunned"], told["backend"], told["routable"]) == (False, None, "pagoda", True)
        router.know(worker, terminating=[worker])
        (told,) = (await get(app, "fleet")).json["workers"]
        assert told["draining"]


async def test_a_trace_is_found_by_whatever_id_its_client_chose(tmp_path):
    worker = ScriptedWorker()
    worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with worker, surface(tmp_path, worker) as (_, app):
        asking = asyncio.create_task(
            Caller(app)("POST", "/v1/completions", {"model": "tiny", "prompt": "a b"}, headers={"x-request-id": "one/two?three"})
        )
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [2], started=True)
        worker.finish(submit.request_id)
        assert (await asking).status == 200
        (listed,) = (await get(app, "traces")).json["traces"]
        assert listed["request_id"] == "one/two?three"
        found = (await get(app, "trace?id=one%2Ftwo%3Fthree")).json
        assert found["phases"][0]["name"] == "receive"
        assert (await get(app, "trace")).status == 400
        assert (await get(app, "decisions?limit=x")).status == 400
