"""POST /admin/sleep and /admin/wake: which workers are asked what, and how their answers read."""

import asyncio
from typing import Any

import grpc
import pytest
from fleet_rig import Rig, model_object, rig
from scripted_worker import ScriptedWorker
from test_internal import get

from pagoda_router.backends.sleep import GrpcSleepCalls
from pagoda_router.http.internal import internal_app
from pagoda_router.http.sleep import TAKES, SleepAdmin
from pagoda_router.wire import worker_pb2 as wire


class Sleepy(ScriptedWorker):
    """Remembers what it was asked."""

    problem = ""
    never = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[Any] = []

    async def Sleep(self, request: Any, context: Any) -> Any:
        await self._hear(request, context)
        return wire.SleepResponse(freed_bytes=4096)

    async def Wake(self, request: Any, context: Any) -> Any:
        await self._hear(request, context)
        return wire.WakeResponse(load_us=1500)

    async def _hear(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        if self.never:
            await asyncio.Event().wait()
        if self.problem:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.problem)


async def post(router: Rig, path: str, query: str = "", *, token: str | None = "inner", method: str = "POST") -> tuple[int, Any]:
    action = SleepAdmin(router.fleet, GrpcSleepCalls("of sessions"))
    app = internal_app({}, dict, "inner", is_loopback=True, action=action, actions=TAKES)
    return await get(app, path, token=token, method=method, query=query)


async def test_every_worker_of_the_model_is_asked_and_its_answer_told(tmp_path):
    async with Sleepy() as first, Sleepy(name="second") as second, Sleepy(model="other") as other, rig(tmp_path, first) as router:
        router.know(first, second, other, models=[model_object(), model_object("other")])
        assert await post(router, "/admin/sleep", "model=tiny&level=2") == (
            200,
            {"model": "tiny", "workers": [{"worker": "tiny-default-0", "freedBytes": 4096}, {"worker": "second", "freedBytes": 4096}]},
        )
        (asked,) = first.asked
        assert (asked.model, asked.level, asked.token) == ("tiny", 2, "of sessions")
        assert (len(second.asked), len(other.asked)) == (1, 0)
        status, answer = await post(router, "/admin/wake", "model=other")
        assert (status, answer["workers"]) == (200, [{"worker": "other-default-0", "loadMs": 1.5}])


async def test_a_worker_that_cannot_is_told_with_its_sentence_beside_those_that_could(tmp_path):
    async with Sleepy() as able, Sleepy(name="unable") as unable, rig(tmp_path, able) as router:
        router.know(able, unable)
        unable.problem = "the host has no memory for the weights"
        status, answer = await post(router, "/admin/sleep", "model=tiny")
        assert status == 409
        assert answer["workers"] == [
            {"worker": "tiny-default-0", "freedBytes": 4096},
            {"worker": "unable", "error": "the host has no memory for the weights"},
        ]


async def test_a_busy_worker_is_waited_for_no_longer_than_asked(tmp_path):
    async with Sleepy() as worker, rig(tmp_path, worker) as router:
        worker.never = True
        status, answer = await post(router, "/admin/sleep", "model=tiny&timeout=0.05")
        assert (status, answer["workers"][0]["error"]) == (409, "requests still ran, or weights were still moved, after 0.05 s")


@pytest.mark.parametrize(
    ("path", "query", "status", "words"),
    [
        ("/admin/sleep", "model=nobody", 404, "there is no model 'nobody'"),
        ("/admin/sleep", "", 404, "there is no model ''"),
        ("/admin/sleep", "model=tiny&level=3", 400, "level is 1 (weights to host memory) or 2"),
        ("/admin/wake", "model=tiny&level=1", 400, "/admin/wake knows no 'level': it takes model, timeout"),
        ("/admin/sleep", "model=tiny&timeout=soon", 400, "timeout is a number of seconds"),
        ("/admin/sleep", "model=tiny&timeout=0", 400, "timeout is a number of seconds"),
        ("/admin/wake", "model=away", 409, "away has no worker now"),
    ],
)
async def test_a_wrong_call_is_told_what_to_write(tmp_path, path: str, query: str, status: int, words: str):
    async with Sleepy() as worker, rig(tmp_path, worker) as router:
        router.know(worker, models=[model_object(), model_object("away")])
        told, answer = await post(router, path, query)
        assert told == status
        assert words in answer["error"]["message"]
        assert not worker.asked


async def test_it_takes_post_and_the_internal_token(tmp_path):
    async with Sleepy() as worker, rig(tmp_path, worker) as router:
        assert (await post(router, "/admin/sleep", "model=tiny", method="GET"))[0] == 405
        assert (await post(router, "/admin/sleep", "model=tiny", token="wrong"))[0] == 401
        assert not worker.asked
