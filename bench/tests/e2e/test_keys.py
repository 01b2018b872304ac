"""The chart's values for keys, with a PostgreSQL and a Redis that pods reach at the node's address: keys, limits and usage of two routers.

It leaves the values as they are and both servers up: the next test upgrades to values without them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import psycopg
import pytest
from conftest import ROOT, Installation, install, ready_routers
from foreign import needs_devcluster
from kube import Object, eventually, names

sys.path.append(str(ROOT / "router/tests"))  # behind: its other files are nobody's business here
from servers import RedisServer, postgres_at, redis_server

pytestmark = [pytest.mark.usefixtures("addresses"), needs_devcluster]
NODE = "10.55.0.1"
PAGE = "https://chat.example.org"
A_MINUTE = 2
"""Requests, of all routers together."""


@dataclass(frozen=True)
class Servers:
    database_url: str
    seen_url: str
    """Of the same database, for this test."""
    redis: RedisServer

    def secrets(self) -> list[Object]:
        urls = {"pagoda-database": self.database_url, "pagoda-redis": self.redis.url}
        return [
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"url": url}} for name, url in urls.items()
        ]

    def values(self) -> list[str]:
        ports = {"database": urlsplit(self.database_url).port, "redis": self.redis.port}
        named = [f"router.{name}.secret=pagoda-{name}" for name in ports] + [f"router.{name}.port={port}" for name, port in ports.items()]
        return [word for value in (*named, f"router.corsOrigins={{{PAGE}}}") for word in ("--set", value)]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with ExitStack() as running:
        urls = running.enter_context(postgres_at(NODE))
        yield Servers(*urls, running.enter_context(redis_server(NODE)))


def pagoda(url: str, admin_key: str, *words: str) -> str:
    """`url`: of one router. Behind the Service an earlier one, without a database, answers for as long as it lingers."""
    command = [str(Path(sys.executable).with_name("pagoda")), *words, "--router", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PAGODA_API_KEY": admin_key}, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_routers_share_keys_limits_and_usage_in_the_servers_that_the_chart_names(installation: Installation, servers: Servers) -> None:
    models = installation.models
    before = names(models.pods("router"))
    models.apply(*servers.secrets())
    install(*servers.values())
    pods = eventually(
        lambda: len(fresh := [pod for pod in ready_routers(models) if pod["metadata"]["name"] not in before]) == 2 and fresh,
        within_s=120,
        of="two routers with a database",
    )
    urls = [f"http://{pod['status']['podIP']}:8000" for pod in pods]
    eventually(lambda: names(models.pods("router")) == names(pods), within_s=60, of="the earlier routers are on their way out")

    made = pagoda(urls[0], installation.api_key, "keys", "create", "ci", "--tenant", "blue", "--rpm", str(A_MINUTE))
    secret = next(word for word in made.split() if word.startswith("pgd-"))
    assert "blue" in pagoda(urls[1], installation.api_key, "keys", "list")
    for url in urls:
        eventually(lambda url=url: _listed(url, secret) == ["tiny"], within_s=15, of="every router knows the new key")

    codes = [_ask(urls[turn % 2], secret) for turn in range(A_MINUTE + 2)]
    assert codes == [None] * A_MINUTE + ["rate_limit_exceeded"] * 2
    eventually(lambda: _stored_requests(servers) == A_MINUTE, within_s=15, of="usage is in PostgreSQL")
    told = json.loads(httpx.get(f"{urls[1]}/admin/v1/usage?by=total", headers=_bearer(installation.api_key)).text)
    assert [row["requests"] for row in told["data"] if row["name"] == "ci"] == [A_MINUTE]

    for origin, allowed in ((PAGE, PAGE), ("https://elsewhere.example", None)):
        answer = httpx.get(f"{urls[0]}/v1/models", headers=_bearer(secret) | {"origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _listed(url: str, key: str) -> list[str]:
    """Nothing while the router refuses the key: it may not have read it yet."""
    answer = httpx.get(f"{url}/v1/models", headers=_bearer(key))
    return [model["id"] for model in answer.json()["data"]] if answer.is_success else []


def _ask(url: str, key: str) -> str | None:
    """The code of its refusal."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        try:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "What is 12 + 30?"}])
        except openai.RateLimitError as error:
            return error.code
    return None


def _stored_requests(servers: Servers) -> int:
    with psycopg.connect(servers.seen_url) as connection:
        query = "SELECT sum(requests) FROM usage_hour JOIN api_key ON api_key.id = usage_hour.key_id WHERE api_key.name = 'ci'"
        found = connection.execute(query).fetchone()
    return int(found[0] or 0) if found else 0
