"""Keys and usage in SQLite and in a real PostgreSQL: the same answers, counted once, migrated, and named when they cannot be used."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest

from pagoda_router.database.base import Database
from pagoda_router.database.opened import opened
from pagoda_router.database.postgres import PostgresDatabase
from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.errors import ConfigError, DatabaseError
from pagoda_router.generation import RequestClass
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.store import KeyStore
from pagoda_router.usage.amounts import Amount, Used
from pagoda_router.usage.counters import Batch, Counted, Place
from pagoda_router.usage.months import month_of
from pagoda_router.usage.store import Question, UsageStore

HOUR_S = 1_795_003_200
MONTH = month_of(HOUR_S)
ALL = Question(from_unix_s=0, until_unix_s=2**40)


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database's PAGODA_DATABASE."""
    if request.param == "sqlite":
        yield str(tmp_path / "router.sqlite3")
        return
    server: str = request.getfixturevalue("postgres_url")
    name = f"test_{os.urandom(6).hex()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield server.replace("/postgres?", f"/{name}?")


OPENED: list[Database] = []


def at(target: str) -> Database:
    """Closed at the test's end."""
    OPENED.append(opened(target))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def _closes() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


def batch(number: int, *places: Place) -> Batch:
    return Batch(number, {place: Counted(1, Used(10, 4, 5, 700)) for place in places})


def place(hour: int = 0, key: str = "key-1", model: str = "tiny") -> Place:
    return Place(HOUR_S + 3600 * hour, key, model, "blue")


KEY = ApiKey(
    id="key-1",
    prefix="pgd-abc",
    name="ci",
    tenant="blue",
    request_class=RequestClass.THROUGHPUT,
    models=frozenset({"a", "b"}),
    requests_per_minute=5,
    tokens_per_minute=10**9,
    monthly_tokens=10**15,
    monthly_nano_usd=2**50,
    is_admin=True,
    created_unix_s=7,
    expires_unix_s=2**40,
)


def test_a_key_comes_back_as_it_was_and_changes_as_told(target: str) -> None:
    store = KeyStore(at(target))
    store.add(b"\x00digest\xff", KEY)
    assert store.all() == {b"\x00digest\xff": KEY}
    assert store.limit(ApiKey(id="key-1", prefix="", name="", tenant=""))
    (limited,) = KeyStore(at(target)).all().values()
    assert (limited.requests_per_minute, limited.tokens_per_minute, limited.monthly_tokens, limited.monthly_nano_usd) == (None,) * 4
    assert store.revoke("key-1", 9)
    assert store.revoke("key-1", 10)
    assert next(iter(store.all().values())).revoked_unix_s == 9
    assert not store.limit(KEY), "a revoked key stays as it is"
    assert not store.revoke("key-0", 9)


def test_usage_is_summed_by_hour_day_and_in_total_and_filtered(target: str) -> None:
    store = UsageStore(at(target), "writer")
    totals = store.write(batch(1, place(), place(1), place(24), place(0, "key-2"), place(0, "key-1", "big")), MONTH, 0)
    assert totals == {"key-1": Amount(60, 2800), "key-2": Amount(15, 700)}
    assert [each.start_unix_s for each in store.sums(Question(from_unix_s=0, until_unix_s=2**40, key_id="key-1", model="tiny"))] == [
        HOUR_S,
        HOUR_S + 3600,
        HOUR_S + 86_400,
    ]
    days = store.sums(Question(from_unix_s=0, until_unix_s=2**40, by="day", key_id="key-1", model="tiny"))
    assert [(each.start_unix_s % 86_400, each.requests, each.prompt_tokens) for each in days] == [(0, 2, 20), (0, 1, 10)]
    (total,) = store.sums(Question(from_unix_s=0, until_unix_s=2**40, by="total", key_id="key-2"))
    assert total == (0, "key-2", "tiny", "blue", 1, 10, 4, 5, 700)
    assert store.sums(Question(from_unix_s=0, until_unix_s=HOUR_S)) == []


def test_a_batch_that_comes_twice_is_counted_once_and_another_writers_is_its_own(target: str) -> None:
    database = at(target)
    ours, theirs = UsageStore(database, "ours"), UsageStore(database, "theirs")
    for store, number in ((ours, 1), (ours, 1), (theirs, 1), (ours, 2), (ours, 1)):
        totals = store.write(batch(number, place()), MONTH, 0)
    assert totals == {"key-1": Amount(45, 2100)}
    assert [each.requests for each in ours.sums(ALL)] == [3]


def test_routers_that_write_at_once_neither_lose_nor_deadlock(target: str) -> None:
    places = [place(hour, f"key-{number}") for hour in range(3) for number in range(10)]

    def write(writer: int) -> None:
        store = UsageStore(at(target), f"writer-{writer}")
        for number in range(1, 6):
            store.write(batch(number, *(places if writer % 2 else reversed(places))), MONTH, 0)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sums = UsageStore(at(target), "reader").sums(ALL)
    assert [each.requests for each in sums] == [20] * len(places)


WRITER = """
import os, signal, sys
from pagoda_router.database.opened import opened
from pagoda_router.usage.amounts import Used
from pagoda_router.usage.counters import Batch, Counted, Place
from pagoda_router.usage.months import month_of
from pagoda_router.usage.store import UsageStore
database = opened(sys.argv[1])
store = UsageStore(database, "killed")
place = Place(3600, "key-1", "tiny", "blue")
store.write(Batch(1, {place: Counted(1, Used(10, 0, 5, 0))}), month_of(3600), 0)
with database.transaction(writes=True) as transaction:
    transaction.change("UPDATE usage_hour SET requests = 99")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_leaves_what_was_committed_and_nothing_of_what_was_not(target: str) -> None:
    assert subprocess.run([sys.executable, "-c", WRITER, target], check=False).returncode == -signal.SIGKILL
    assert [(each.requests, each.prompt_tokens) for each in UsageStore(at(target), "reader").sums(ALL)] == [(1, 10)]


def test_the_first_versions_file_gets_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "router.sqlite3"
    first = files("pagoda_router.database").joinpath("migrations", "sqlite", "0001_keys.sql").read_text()
    with sqlite3.connect(path) as connection:
        connection.execute(first)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("INSERT INTO api_key VALUES ('key-1', x'01', 'pgd-', 'n', 't', 'latency', NULL, 5, 0, 7, NULL, NULL)")
    connection.close()
    store = KeyStore(SqliteDatabase(path))
    assert store.all() == {b"\x01": ApiKey(id="key-1", prefix="pgd-", name="n", tenant="t", requests_per_minute=5, created_unix_s=7)}


def test_a_newer_schema_is_refused(target: str) -> None:
    database = at(target)
    newer = "UPDATE pagoda_schema SET version = 999" if target.startswith("postgresql") else "PRAGMA user_version = 999"
    with database.transaction(writes=True) as transaction:
        transaction.change(newer)
    with pytest.raises(ConfigError, match="newer Pagoda"):
        at(target)


def test_routers_that_start_at_once_migrate_once(target: str) -> None:
    started: list[Database] = []
    threads = [threading.Thread(target=lambda: started.append(at(target))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(started) == 4


def test_a_server_that_is_away_is_one_line_without_the_password() -> None:
    with pytest.raises(ConfigError) as raised:
        PostgresDatabase("postgresql://pagoda:hush@127.0.0.1:1/keys")
    assert str(raised.value).startswith("PAGODA_DATABASE=postgresql://127.0.0.1/keys cannot be used: ")
    assert "hush" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_connection_that_the_server_ended_is_opened_again(postgres_url: str) -> None:
    database = at(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    with database.transaction() as transaction:
        assert transaction.rows("SELECT 1") == [(1,)]


def test_what_a_server_refuses_is_undone_and_told(postgres_url: str) -> None:
    database = at(postgres_url)

    def refused() -> None:
        with database.transaction(writes=True) as transaction:
            transaction.change("CREATE TABLE made_here (one BIGINT)")
            transaction.change("DELETE FROM no_such_table")

    with pytest.raises(DatabaseError, match="no_such_table"):
        refused()
    with database.transaction() as transaction:
        assert transaction.rows("SELECT 1 FROM pg_tables WHERE tablename = 'made_here'") == []
