"""The probes and the operator's view of this router."""

import asyncio
import json
from typing import Any

import pytest
from fleet_rig import Rig, generation, model_object, rig
from scripted_worker import ScriptedWorker

from pagoda_router.http.internal import Probes, fleet_report, internal_app, routes


async def get(app: Any, path: str, *, token: str | None = None, method: str = "GET", query: str = "") -> tuple[int, Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    await app({"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}, receive, send)
    body = sent[1]["body"]
    is_json = dict(sent[0]["headers"])[b"content-type"] == b"application/json"
    return sent[0]["status"], json.loads(body) if is_json else body.decode()


def app_of(router: Rig, *, loaded: bool = True, token: str | None = "inner", is_loopback: bool = True) -> tuple[Any, Probes]:
    probes = Probes(router.fleet, lambda: loaded)
    open_routes = routes(probes, router.registry)
    return internal_app(open_routes, lambda: fleet_report(router.fleet, router.dispatcher), token, is_loopback=is_loopback), probes


async def test_the_fleet_report_counts_routable_workers_by_template_and_what_waits(tmp_path):
    async with (
        ScriptedWorker(capacity_tokens=64) as worker,
        ScriptedWorker(name="late", ready=False) as late,
        rig(tmp_path, worker) as router,
    ):
        router.know(worker, late, models=[model_object(), model_object("asleep")])
        tasks = [asyncio.create_task(router.collect(generation(20, 40))) for _ in range(3)]
        await worker.next_submit()
        await router.until(lambda: any(link.view().reason == "the model is loading" for link in router.fleet.links("tiny")))
        status, report = await get(app_of(router)[0], "/internal/v1/fleet", token="inner")
        assert status == 200
        tiny, asleep = report["models"]["tiny"], report["models"]["asleep"]
        assert {**tiny, "waitingByVariant": None} == {
            "routable": {"t1": 1}, "inFlight": 1, "queuedTokens": 128, "waiting": 2, "waitingByVariant": None,
            "idleS": 0.0, "ttftS": None, "arrivals": 3,
        }  # fmt: skip
        assert tiny["waitingByVariant"] == {"default": 2}
        assert (asleep["routable"], asleep["inFlight"], asleep["queuedTokens"], asleep["waiting"], asleep["arrivals"]) == ({}, 0, 0, 0, 0)
        assert asleep["idleS"] >= 0
        by_name = {entry["name"]: entry for entry in report["workers"]}
        assert by_name["late"]["reason"] == "the model is loading"
        assert (by_name["tiny-default-0"]["prefillTokensPerS"], by_name["tiny-default-0"]["decodeTokensPerS"]) == (10_000, 200)
        assert (by_name["late"]["prefillTokensPerS"], by_name["late"]["decodeTokensPerS"]) == (0, 0)
        told = by_name["tiny-default-0"]
        assert (told["kvCapacityTokens"], told["kvAvailableTokens"], told["kvReservedTokens"], told["kvUsedTokens"]) == (64, 0, 64, 0)
        for task in tasks:
            task.cancel()


async def test_rates_are_the_workers_own_or_those_of_its_self_test(tmp_path):
    async with ScriptedWorker() as worker:
        worker.state.prefill_tokens_per_s = worker.state.decode_step_ms = 0
        worker.described_decode_tokens_per_s = 150
        async with rig(tmp_path, worker) as router:
            (told,) = fleet_report(router.fleet, router.dispatcher)["workers"]
            assert (told["prefillTokensPerS"], told["decodeTokensPerS"]) == (4000, 150)
            worker.change_state(decode_step_ms=20, num_running=4, prefill_tokens_per_s=9000)
            await router.until(lambda: router.fleet.links("tiny")[0].view().running == 4)
            (told,) = fleet_report(router.fleet, router.dispatcher)["workers"]
            assert (told["prefillTokensPerS"], told["decodeTokensPerS"]) == (9000, 200)


async def test_a_worker_that_sleeps_is_told_of(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        assert fleet_report(router.fleet, router.dispatcher)["workers"][0]["sleeps"] is False
        worker.change_state(sleep_level=1)
        await router.until(lambda: fleet_report(router.fleet, router.dispatcher)["workers"][0]["sleeps"])


ACCESS = [
    # token set, sent, loopback → status
    ("inner", "inner", False, 200),
    ("inner", "other", True, 401),
    ("inner", None, True, 401),
    (None, None, True, 200),
    (None, None, False, 403),
    (None, "anything", False, 403),
]


@pytest.mark.parametrize(("token", "sent", "is_loopback", "status"), ACCESS)
async def test_the_fleet_report_is_for_the_bearer_of_the_internal_token(tmp_path, token, sent, is_loopback, status):
    async with rig(tmp_path) as router:
        app, _ = app_of(router, token=token, is_loopback=is_loopback)
        assert (await get(app, "/internal/v1/fleet", token=sent))[0] == status


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/internal/v1/fleet", 405), ("GET", "/v1/models", 404), ("GET", "/", 404)])
async def test_other_paths_and_methods_are_refused(tmp_path, method, path, status):
    async with rig(tmp_path) as router:
        got, body = await get(app_of(router)[0], path, token="inner", method=method)
        assert got == status
        assert body["error"]["message"]


async def test_health_answers_while_the_loop_lives_and_ready_once_the_fleet_is_known(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        app, _ = app_of(router, loaded=False)
        assert (await get(app, "/health"))[0] == 200
        assert (await get(app, "/ready"))[0] == 503
        app, probes = app_of(router)
        assert await get(app, "/ready") == (200, {"ready": True, "models": {"tiny": {"ready": True, "reason": ""}}})
        probes.draining = True
        status, body = await get(app, "/ready")
        assert (status, body["reason"]) == (503, "the router drains")
        assert (await get(app, "/health"))[0] == 200


async def test_metrics_are_exposed(tmp_path):
    async with rig(tmp_path) as router:
        status, body = await get(app_of(router)[0], "/metrics")
        assert status == 200
        assert "pagoda_router_sessions_ended_total" in body
