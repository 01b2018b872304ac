"""Two router processes that share a real PostgreSQL and a real Redis: keys, limits and usage, and what is left after kill -9."""

import asyncio

import httpx
from scripted_worker import ScriptedWorker
from servers import RedisServer
from test_main import Process, running, until_ready, word_tokenizer, write_fleet

ROOT = {"authorization": "Bearer root"}
COMPLETION = {"model": "tiny", "prompt": "a b c", "max_tokens": 8, "stream": True}


async def served(client: httpx.AsyncClient, router: Process, worker: ScriptedWorker, secret: str, *, tokens: int) -> httpx.Response:
    """One stream of so many tokens, which the worker does not end."""
    request = client.build_request("POST", f"{router.url}/v1/completions", json=COMPLETION, headers={"authorization": f"Bearer {secret}"})
    sending = asyncio.create_task(client.send(request, stream=True))
    submit = await worker.next_submit()
    worker.tokens(submit.request_id, [0] * tokens, started=True)
    return await sending


async def until(client: httpx.AsyncClient, router: Process, path: str, headers: dict[str, str], status: int) -> None:
    async with asyncio.timeout(20):
        while (await client.get(f"{router.url}{path}", headers=headers)).status_code != status:
            await asyncio.sleep(0.05)


async def usage_of(client: httpx.AsyncClient, router: Process) -> dict[str, int]:
    answer = await client.get(f"{router.url}/admin/v1/usage?by=total", headers=ROOT)
    total: dict[str, int] = answer.json()["total"]
    return total


async def test_routers_share_keys_limits_and_usage_and_kill_9_loses_nothing_that_was_stored(
    tmp_path, postgres_url: str, redis: RedisServer
):
    settings = {"PAGODA_DATABASE": postgres_url, "PAGODA_REDIS": redis.url, "PAGODA_API_KEY": "root"}
    folders = [tmp_path / "ours", tmp_path / "theirs"]
    for folder in folders:
        folder.mkdir()
    async with (
        ScriptedWorker() as our_worker,  # one each, as it speaks to one router
        ScriptedWorker() as their_worker,
        running(folders[0], **settings) as ours,
        running(folders[1], **settings) as theirs,
        httpx.AsyncClient(timeout=20) as client,
    ):
        for folder, router, worker in zip(folders, (ours, theirs), (our_worker, their_worker), strict=True):
            worker.use_tokenizer(word_tokenizer())
            write_fleet(folder, worker)
            await until_ready(client, router)
        wanted = {"name": "team", "requests_per_minute": 2, "monthly_tokens": 1000}
        made = (await client.post(f"{ours.url}/admin/v1/keys", json=wanted, headers=ROOT)).json()
        key = {"authorization": f"Bearer {made['key']}"}
        await until(client, theirs, "/v1/models", key, 200)

        first = await served(client, ours, our_worker, made["key"], tokens=2)
        second = await served(client, theirs, their_worker, made["key"], tokens=3)
        assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second)] == ["1", "0"]
        refused = await client.post(f"{ours.url}/v1/completions", json=COMPLETION, headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")

        async with asyncio.timeout(20):  # their stream runs on; what was sent of it is stored all the same
            while (await usage_of(client, ours))["completion_tokens"] != 5:
                await asyncio.sleep(0.05)
        theirs.process.kill()
        await theirs.ended()
        total = await usage_of(client, ours)
        assert (total["requests"], total["prompt_tokens"], total["completion_tokens"]) == (2, 6, 5)
        for stream in (first, second):
            await stream.aclose()
