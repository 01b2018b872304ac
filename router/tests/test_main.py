"""The router as a process: start, answer, drain, and one line for what cannot start."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_api import MODELS, SLICES, scripted_api
from scripted_worker import ScriptedWorker
from tokenizers import Tokenizer, models, pre_tokenizers

from pagoda_router.http.listeners import Listeners, bind


@dataclass
class Process:
    process: asyncio.subprocess.Process
    url: str
    internal_url: str
    log: list[str]

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    usual = {
        "PAGODA_HTTP_PORT": "0",
        "PAGODA_INTERNAL_PORT": "0",
        "PAGODA_FLEET_FILE": str(folder / "fleet.json"),
        "PAGODA_CACHE_DIR": str(folder / "cache"),
        "PAGODA_INTERNAL_TOKEN": "inner",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAGODA_")}
    return {**inherited, **usual, **settings}


async def start(folder: Path, **settings: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pagoda_router", env=environment(folder, **settings), stderr=asyncio.subprocess.PIPE
    )


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[Process]:
    process = await start(folder, **settings)
    assert process.stderr is not None
    log: list[str] = []
    addresses = None
    while addresses is None:
        line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
        assert line, f"the router ended before it listened: {log}"
        log.append(line)
        addresses = re.search(r"listening http=(\S+) internal=(\S+)", line)
    reading = asyncio.create_task(_read(process.stderr, log))
    try:
        yield Process(process, f"http://{addresses[1]}", f"http://{addresses[2]}", log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reading


async def _read(stderr: asyncio.StreamReader, log: list[str]) -> None:
    log += [line.decode() async for line in stderr]


def write_fleet(folder: Path, worker: ScriptedWorker) -> None:
    metadata = {"name": "tiny", "creationTimestamp": "2026-01-02T03:04:05Z"}
    labels = {"pagoda.dev/model": "tiny", "pagoda.dev/variant": "default", "pagoda.dev/template": "t1"}
    entry = {"addresses": ["127.0.0.1"], "conditions": {"serving": True}, "targetRef": {"kind": "Pod", "name": worker.name}}
    document = {
        "version": 1,
        "models": [{"metadata": metadata, "spec": {"model": {"source": "builtin://tiny"}}}],
        "endpointSlices": [
            {"metadata": {"name": "s", "labels": labels}, "ports": [{"name": "grpc", "port": worker.port}], "endpoints": [entry]}
        ],
    }
    fresh = folder / "fleet.new"
    fresh.write_text(json.dumps(document))
    fresh.replace(folder / "fleet.json")


def word_tokenizer() -> bytes:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "?": 3}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return str(tokenizer.to_str()).encode()


async def until_ready(client: httpx.AsyncClient, router: Process) -> None:
    async with asyncio.timeout(20):
        while not (await client.get(f"{router.url}/ready")).json()["models"].get("tiny", {}).get("ready"):
            await asyncio.sleep(0.05)


async def until_closed(router: Process) -> None:
    """No new connections: the listener looks ten times a second whether it is to stop."""
    async with asyncio.timeout(10):
        while True:
            async with httpx.AsyncClient() as newcomer:
                try:
                    await newcomer.get(f"{router.url}/health")
                except httpx.RemoteProtocolError:
                    continue  # accepted in the very moment of closing
                except httpx.ConnectError:
                    return


BAD_STARTS = [
    ({"PAGODA_BIND_HOST": "0.0.0.0"}, "set PAGODA_API_KEY"),
    ({"PAGODA_FLEETFILE": "x"}, "did you mean PAGODA_FLEET_FILE?"),
    ({"PAGODA_CACHE_DIR": "/dev/null/cache"}, "PAGODA_CACHE_DIR=/dev/null/cache is not a writable folder"),
    ({"PAGODA_BIND_HOST": "192.0.2.1", "PAGODA_API_KEY": "k"}, "cannot listen on 192.0.2.1"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_STARTS, ids=str)
async def test_a_bad_start_is_one_line_and_status_2(tmp_path, settings, message):
    process = await start(tmp_path, **settings)
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert message in stderr.decode()
    assert len(stderr.decode().splitlines()) == 1


async def test_a_busy_port_is_one_line_and_status_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = await start(tmp_path, PAGODA_HTTP_PORT=str(port))
        _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert stderr.decode() == f"pagoda-router: port {port} on 127.0.0.1 is in use by another process: stop it or set PAGODA_HTTP_PORT\n"


async def test_routers_that_say_so_share_a_port_and_those_that_stay_serve_when_one_ends(tmp_path):
    settings = {"PAGODA_REUSE_PORT": "on"}
    (tmp_path / "fleet.json").write_text('{"version": 1}')
    async with running(tmp_path, **settings) as first:
        port = first.url.rpartition(":")[2]
        async with running(tmp_path, **settings, PAGODA_HTTP_PORT=port) as second:
            assert second.url == first.url
            other = await start(tmp_path, PAGODA_HTTP_PORT=port)
            _, stderr = await asyncio.wait_for(other.communicate(), 30)
            assert (other.returncode, b"in use by another process" in stderr) == (2, True), "others are told as before"
            first.process.terminate()
            assert await first.ended() == 0
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"{second.url}/v1/models")).json()["data"] == []


async def test_a_router_serves_streams_and_drains(tmp_path):
    """From an empty folder to a drained exit: the whole process once, with a scripted worker behind it."""
    async with ScriptedWorker() as worker, running(tmp_path) as router, httpx.AsyncClient(timeout=20) as client:
        worker.use_tokenizer(word_tokenizer())
        assert (await client.get(f"{router.url}/health")).status_code == 200
        assert (await client.get(f"{router.url}/ready")).status_code == 503
        write_fleet(tmp_path, worker)
        await until_ready(client, router)
        fleet = await client.get(f"{router.internal_url}/internal/v1/fleet", headers={"authorization": "Bearer inner"})
        assert fleet.json()["models"]["tiny"]["routable"] == {"t1": 1}

        body = {"model": "tiny", "prompt": "a b c", "max_tokens": 8, "stream": True}
        sending = asyncio.create_task(client.send(client.build_request("POST", f"{router.url}/v1/completions", json=body), stream=True))
        submit = await worker.next_submit()
        assert list(submit.prompt_ids) == [0, 1, 2]
        worker.tokens(submit.request_id, [0], started=True)
        response = await sending
        assert response.status_code == 200

        router.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await client.get(f"{router.internal_url}/ready")).status_code != 503:
                await asyncio.sleep(0.02)
        await until_closed(router)
        worker.tokens(submit.request_id, [1])
        worker.finish(submit.request_id, tokens=2)
        lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        await response.aclose()
        assert await router.ended() == 0
        assert "stopped" in router.log[-1]
        assert all(line.startswith("time=") for line in router.log)


async def test_a_router_that_ends_takes_requests_until_all_have_heard_that_it_does(tmp_path):
    """A Service or load balancer goes on sending for a moment: those requests are answered, and their connections not kept."""
    async with ScriptedWorker() as worker, running(tmp_path, PAGODA_LINGER_S="3") as router, httpx.AsyncClient(timeout=20) as client:
        worker.use_tokenizer(word_tokenizer())
        write_fleet(tmp_path, worker)
        await until_ready(client, router)
        before = await client.get(f"{router.url}/v1/models")
        assert (before.status_code, before.headers.get("connection")) == (200, None)
        router.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await client.get(f"{router.internal_url}/ready")).status_code != 503:
                await asyncio.sleep(0.02)
        asking = asyncio.create_task(client.post(f"{router.url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1}))
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [0], started=True)
        worker.finish(submit.request_id, tokens=1)
        answer = await asking
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert await router.ended() == 0


async def test_a_drain_that_runs_out_of_time_ends_streams_with_an_error_event(tmp_path):
    async with ScriptedWorker() as worker, running(tmp_path, PAGODA_DRAIN_S="0.2") as router, httpx.AsyncClient(timeout=20) as client:
        worker.use_tokenizer(word_tokenizer())
        write_fleet(tmp_path, worker)
        await until_ready(client, router)
        body = {"model": "tiny", "prompt": "a b c", "max_tokens": 8, "stream": True}
        sending = asyncio.create_task(client.send(client.build_request("POST", f"{router.url}/v1/completions", json=body), stream=True))
        worker.tokens((await worker.next_submit()).request_id, [0])
        response = await sending
        router.process.send_signal(signal.SIGTERM)
        lines = [line async for line in response.aiter_lines() if line]
        assert "the router is shutting down" in lines[-1]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"]
        assert await router.ended() == 0


async def test_a_router_in_a_cluster_is_ready_once_it_read_its_models_and_outlives_the_api_server(tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    settings = {"PAGODA_DISCOVERY": "kubernetes", "PAGODA_NAMESPACE": "ns", "KUBECONFIG": str(kubeconfig)}
    async with scripted_api() as api, ScriptedWorker() as worker, httpx.AsyncClient(timeout=20) as client:
        worker.use_tokenizer(word_tokenizer())
        api.refuses_with = 503
        api.put(MODELS, {"metadata": {"name": "tiny"}, "spec": {"model": {"source": "builtin://tiny"}}})
        write_kubeconfig(kubeconfig, api.url)
        async with running(tmp_path, **settings) as router:
            assert (await client.get(f"{router.url}/ready")).status_code == 503
            answer = await client.get(f"{router.url}/v1/models")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "router_starting")
            api.refuses_with = None
            async with asyncio.timeout(20):
                while (await client.get(f"{router.url}/ready")).status_code != 200:
                    await asyncio.sleep(0.05)
            (card,) = (await client.get(f"{router.url}/v1/models")).json()["data"]
            assert (card["id"], card["pagoda"]["state"]) == ("tiny", "loading")
            waiting = asyncio.create_task(client.post(f"{router.url}/v1/completions", json={"model": "tiny", "prompt": "hello"}))
            async with asyncio.timeout(20):
                while not (await fleet_of(client, router))["models"]["tiny"]["waiting"]:
                    await asyncio.sleep(0.02)
            labels = {"pagoda.dev/model": "tiny", "pagoda.dev/variant": "default"}
            entry = {"addresses": ["127.0.0.1"], "conditions": {"serving": False}, "targetRef": {"kind": "Pod", "name": "tiny-default-x"}}
            ports = [{"name": "grpc", "port": worker.port}]
            api.put(SLICES, {"metadata": {"name": "s", "labels": labels}, "addressType": "IPv4", "ports": ports, "endpoints": [entry]})
            submit = await worker.next_submit()
            api.refuses_with = 503
            api.break_watches()
            worker.tokens(submit.request_id, [1])
            worker.finish(submit.request_id)
            assert (await waiting).status_code == 200
            assert (await client.get(f"{router.url}/ready")).json()["models"]["tiny"]["ready"]
            workers = (await fleet_of(client, router))["workers"]
            assert [(entry["name"], entry["template"]) for entry in workers] == [("tiny-default-x", "")]


async def test_a_cluster_that_cannot_be_reached_is_one_line_and_status_2(tmp_path):
    settings = {"PAGODA_DISCOVERY": "kubernetes", "PAGODA_NAMESPACE": "ns", "KUBECONFIG": str(tmp_path / "absent")}
    process = await start(tmp_path, **settings)
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert stderr.decode().startswith("pagoda-router: PAGODA_DISCOVERY=kubernetes finds no way to the API server in KUBECONFIG=")
    assert stderr.count(b"\n") == 1


async def fleet_of(client: httpx.AsyncClient, router: Process) -> dict[str, Any]:
    report: dict[str, Any] = (
        await client.get(f"{router.internal_url}/internal/v1/fleet", headers={"authorization": "Bearer inner"})
    ).json()
    return report


def write_kubeconfig(file: Path, server: str) -> None:
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context],
        "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    file.write_text(json.dumps(document))


async def test_accepted_connections_do_not_wait_to_fill_segments():
    nodelay: list[int] = []

    async def app(scope, receive, send):
        connection = send.__self__.transport.get_extra_info("socket")
        nodelay.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    public, internal = bind("127.0.0.1", 0, "A"), bind("127.0.0.1", 0, "B")
    port = public.getsockname()[1]
    listeners = Listeners((public, app), (internal, app), drain_s=1)
    listeners.start()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
    await listeners.drain(lambda: None)
    assert nodelay == [1]
