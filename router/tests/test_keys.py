"""Keys: kept as digests, looked up in memory, refused when revoked, expired or out of scope, and still there after kill -9."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat

from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.errors import ConfigError, DatabaseError, KeysUnavailable, Starting, Unauthorized
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.admin import KEYS, KeyAdmin
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring
from pagoda_router.keys.store import KeyStore

NOW_S = 1_800_000_000


class Calendar:
    now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(SqliteDatabase(tmp_path / "router.sqlite3"))


@pytest.fixture
def ask(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, store: KeyStore, calendar: Calendar) -> Callable[..., Any]:
    dispatcher.script = Script(batches=[[72]])
    keyring = Keyring("root", store, calendar=calendar)
    app = create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), keyring=keyring)

    async def ask(method: str, path: str, body: object = b"", secret: str = "root", **headers: str) -> Caller:
        return await Caller(app)(method, path, body, headers={"authorization": f"Bearer {secret}", **headers})

    return ask


async def test_a_created_key_works_until_it_is_revoked_and_its_secret_is_shown_once(ask: Callable[..., Any], tmp_path: Path) -> None:
    created = await ask("POST", "/admin/v1/keys", {"name": "ci", "tenant": "blue"})
    secret = created.json["key"]
    assert created.status == 201
    assert secret.startswith(created.json["prefix"])
    assert (await ask("POST", "/v1/chat/completions", chat(), secret)).status == 200
    listed = (await ask("GET", "/admin/v1/keys")).json["data"]
    assert [(key["name"], key["tenant"], key["created_at"], key["revoked_at"]) for key in listed] == [("ci", "blue", NOW_S, None)]
    assert "key" not in listed[0]
    assert secret.encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("router.sqlite3*"))
    revoked = await ask("DELETE", f"/admin/v1/keys/{created.json['id']}")
    assert (revoked.status, revoked.json["revoked_at"]) == (200, NOW_S)
    refused = await ask("POST", "/v1/chat/completions", chat(), secret)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert "revoked" in refused.error["message"]


@pytest.mark.parametrize(
    ("own", "asked", "counted"),
    [("latency", None, "latency"), ("latency", "throughput", "throughput"), ("throughput", "latency", "throughput")],
)
async def test_a_request_is_counted_for_its_keys_tenant_and_class(
    ask: Callable[..., Any], dispatcher: ScriptedDispatcher, own: str, asked: str | None, counted: str
) -> None:
    secret = (await ask("POST", "/admin/v1/keys", {"name": "n", "tenant": "blue", "class": own})).json["key"]
    headers = {} if asked is None else {"x-pagoda-class": asked}
    await ask("POST", "/v1/chat/completions", chat(), secret, **headers)
    (generation,) = dispatcher.generations
    assert (generation.tenant, generation.request_class) == ("blue", counted)


async def test_a_key_stops_at_its_expiry(ask: Callable[..., Any], calendar: Calendar) -> None:
    secret = (await ask("POST", "/admin/v1/keys", {"name": "day", "expires_at": NOW_S + 60})).json["key"]
    calendar.now_s += 59
    assert (await ask("GET", "/v1/models", secret=secret)).status == 200
    calendar.now_s += 1
    assert "expired" in (await ask("GET", "/v1/models", secret=secret)).error["message"]


SCOPED = [
    ("POST", "/v1/chat/completions", chat(model="org/asleep")),
    ("POST", "/v1/completions", {"model": "org/asleep", "prompt": "hi"}),
    ("POST", "/v1/embeddings", {"model": "org/asleep", "input": "hi"}),
    ("POST", "/tokenize", {"model": "org/asleep", "prompt": "hi"}),
    ("POST", "/detokenize", {"model": "org/asleep", "tokens": [1]}),
    ("GET", "/v1/models/org/asleep", b""),
]


@pytest.mark.parametrize(("method", "path", "body"), SCOPED, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_key_reaches_only_its_models(ask: Callable[..., Any], method: str, path: str, body: object) -> None:
    secret = (await ask("POST", "/admin/v1/keys", {"name": "one", "models": ["tiny"]})).json["key"]
    refused = await ask(method, path, body, secret)
    assert (refused.status, refused.error["code"], refused.error["param"]) == (403, "model_not_allowed", "model")
    assert [card["id"] for card in (await ask("GET", "/v1/models", secret=secret)).json["data"]] == ["tiny"]


async def test_a_new_key_names_those_of_its_models_that_nobody_serves(ask: Callable[..., Any], catalog: ScriptedCatalog) -> None:
    made = await ask("POST", "/admin/v1/keys", {"name": "one", "models": ["tiny", "nosuch", "later"]})
    assert (made.status, made.json["unknown_models"]) == (201, ["later", "nosuch"])
    assert (await ask("POST", "/admin/v1/keys", {"name": "all"})).json["unknown_models"] == []


async def test_a_router_that_has_not_read_its_models_calls_none_unknown(
    ask: Callable[..., Any], catalog: ScriptedCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starting() -> NoReturn:
        raise Starting("the router has not read its models yet")

    monkeypatch.setattr(catalog, "list", starting)
    assert (await ask("POST", "/admin/v1/keys", {"name": "early", "models": ["nosuch"]})).json["unknown_models"] == []


async def test_only_an_admin_key_makes_keys(ask: Callable[..., Any]) -> None:
    plain = (await ask("POST", "/admin/v1/keys", {"name": "plain"})).json["key"]
    admin = (await ask("POST", "/admin/v1/keys", {"name": "chief", "admin": True})).json["key"]
    for method, path in (("GET", "/admin/v1/keys"), ("POST", "/admin/v1/keys"), ("DELETE", "/admin/v1/keys/x")):
        assert (await ask(method, path, {"name": "more"}, plain)).error["code"] == "forbidden"
    assert (await ask("POST", "/admin/v1/keys", {"name": "more"}, admin)).status == 201


BAD = [
    ({"name": "x", "expires_at": NOW_S}, "expires_at", "is in the past"),
    ({}, "name", "required"),
    ({"name": "x", "rpm": 1}, "rpm", "there is requests_per_minute, "),
    ({"name": "x", "models": []}, "models", "empty"),
    ({"name": ""}, "name", "length >= 1"),
    ({"name": "x", "class": "batch"}, "class", "write latency or throughput"),
    ({"name": "x", "monthly_usd": 0}, "monthly_usd", "> 0"),
]


@pytest.mark.parametrize(("body", "named", "words"), BAD, ids=str)
async def test_a_wrong_request_for_a_key_names_the_field(ask: Callable[..., Any], body: object, named: str, words: str) -> None:
    refused = await ask("POST", "/admin/v1/keys", body)
    assert (refused.status, refused.error["param"]) == (400, named)
    assert words in refused.error["message"]


async def test_an_unknown_key_cannot_be_revoked(ask: Callable[..., Any]) -> None:
    refused = (await ask("DELETE", "/admin/v1/keys/key-0")).error
    assert (refused["code"], "there is no key key-0" in refused["message"]) == ("not_found", True)


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
async def test_a_secret_in_an_ids_place_is_not_said_again(ask: Callable[..., Any], method: str) -> None:
    for secret in ("pgd-SECRET", "sk-SECRET"):
        refused = await ask(method, f"/admin/v1/keys/{secret}", {} if method == "PATCH" else None)
        assert (refused.status, "an id is key-…" in refused.error["message"]) == (404, True)
        assert "SECRET" not in str(refused.json)


async def test_without_a_bootstrap_key_anyone_may_ask_and_a_known_key_says_whose_it_is(store: KeyStore, calendar: Calendar) -> None:
    keyring = Keyring(None, store, calendar=calendar)
    secret, key = await keyring.create(ApiKey(id="", prefix="", name="n", tenant="blue"))
    given = (None, b"Bearer unused", b"bearer " + secret.encode())
    assert [keyring.check(header).tenant for header in given] == ["", "", "blue"]
    await keyring.revoke(key.id)
    with pytest.raises(Unauthorized, match="revoked"):
        keyring.check(b"Bearer " + secret.encode())


async def test_another_routers_change_is_known_after_a_refresh(
    store: KeyStore, calendar: Calendar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagoda_router.keys.keyring.REFRESH_S", 0.0)
    ours, theirs = (Keyring("root", KeyStore(SqliteDatabase(tmp_path / "router.sqlite3")), calendar=calendar) for _ in range(2))
    secret, key = await theirs.create(ApiKey(id="", prefix="", name="n", tenant="blue"))
    refreshing = asyncio.create_task(ours.run())
    async with asyncio.timeout(10):
        while not ours.list():
            await asyncio.sleep(0)
        assert ours.check(b"Bearer " + secret.encode()).id == key.id
        await theirs.revoke(key.id)
        while ours.list()[0].revoked_unix_s is None:
            await asyncio.sleep(0)
    refreshing.cancel()
    with pytest.raises(Unauthorized):
        ours.check(b"Bearer " + secret.encode())


async def test_a_list_of_keys_has_what_another_router_made(calendar: Calendar, catalog: ScriptedCatalog, tmp_path: Path) -> None:
    ours, theirs = (Keyring("root", KeyStore(SqliteDatabase(tmp_path / "router.sqlite3")), calendar=calendar) for _ in range(2))
    _, key = await theirs.create(ApiKey(id="", prefix="", name="n", tenant="blue"))
    status, body = await KeyAdmin(ours, catalog).answer("GET", KEYS, b"")
    assert (status, [each["id"] for each in json.loads(body)["data"]]) == (200, [key.id])


async def test_known_keys_go_on_working_without_their_database(store: KeyStore, calendar: Calendar, tmp_path: Path) -> None:
    keyring = Keyring("root", store, calendar=calendar)
    secret, _ = await keyring.create(ApiKey(id="", prefix="", name="n", tenant="blue"))
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(KeysUnavailable):
        await keyring.create(ApiKey(id="", prefix="", name="m", tenant="blue"))
    assert keyring.check(b"Bearer " + secret.encode()).tenant == "blue"


async def test_a_database_that_is_away_is_complained_of_once_and_its_return_told(
    store: KeyStore, calendar: Calendar, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pagoda_router.keys.keyring.REFRESH_S", 0.0)
    keyring, told, over = Keyring("root", store, calendar=calendar), iter(["gone", "gone", "gone", "", "gone"]), threading.Event()

    def all_keys() -> dict[bytes, ApiKey]:
        complaint = next(told, None)
        if complaint:
            raise DatabaseError(complaint)
        if complaint is None:
            over.set()
        return {}

    monkeypatch.setattr(store, "all", all_keys)
    with caplog.at_level("INFO", logger="pagoda_router.keys.keyring"):
        refreshing = asyncio.create_task(keyring.run())
        async with asyncio.timeout(10):
            while not over.is_set():
                await asyncio.sleep(0)
        refreshing.cancel()
    assert [record.message.rpartition(": ")[2] for record in caplog.records[:3]] == ["gone", "keys can be read again", "gone"]


WRITER = """
import os, signal, sys
from pathlib import Path
from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.store import KeyStore
store = KeyStore(SqliteDatabase(Path(sys.argv[1])))
for number in range(20):
    store.add(bytes([number]) * 32, ApiKey(id=f"key-{number}", prefix="pgd-", name="n", tenant="t", created_unix_s=number))
store.revoke("key-3", 99)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_keys_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite3"
    assert subprocess.run([sys.executable, "-c", WRITER, path], check=False).returncode == -9
    keys = list(KeyStore(SqliteDatabase(path)).all().values())
    assert [key.id for key in keys] == [f"key-{number}" for number in range(20)]
    assert [key.id for key in keys if key.revoked_unix_s == 99] == ["key-3"]


def test_a_database_of_a_newer_version_or_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite3"
    SqliteDatabase(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(ConfigError, match="newer Pagoda"):
        SqliteDatabase(path)
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        SqliteDatabase(path)
