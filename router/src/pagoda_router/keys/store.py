"""Keys in SQLite: the one place that reads and writes them. Blocking calls; the keyring makes them in a thread.

Write-ahead log with full syncing: what a call returned from survives kill -9 and a power cut. Migrations are the numbered files beside it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import msgspec

from pagoda_router.errors import ConfigError
from pagoda_router.generation import RequestClass
from pagoda_router.keys.key import ApiKey

BUSY_S = 5.0
"""Wait for another process that writes."""
INSERT = """INSERT INTO api_key (
    digest, id, prefix, name, tenant, request_class, models, requests_per_minute, is_admin, created_unix_s, expires_unix_s
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
SELECT = """SELECT
    digest, id, prefix, name, tenant, request_class, models, requests_per_minute, is_admin, created_unix_s, expires_unix_s, revoked_unix_s
FROM api_key ORDER BY created_unix_s, id"""


class KeyStore:
    def __init__(self, path: Path) -> None:
        """Opens and migrates. Raises ConfigError."""
        self._path = path
        try:
            with self._connection() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                _migrate(connection, path)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"PAGODA_DATABASE={path} cannot be used: {error}") from None

    def add(self, digest: bytes, key: ApiKey) -> None:
        models = None if key.models is None else msgspec.json.encode(sorted(key.models)).decode()
        row = (
            digest,
            key.id,
            key.prefix,
            key.name,
            key.tenant,
            key.request_class.value,
            models,
            key.requests_per_minute,
            key.is_admin,
            key.created_unix_s,
            key.expires_unix_s,
        )
        with self._connection() as connection:
            connection.execute(INSERT, row)

    def revoke(self, key_id: str, now_unix_s: int) -> bool:
        """False: there is no such key. The first revocation's time stays."""
        with self._connection() as connection:
            changed = connection.execute(
                "UPDATE api_key SET revoked_unix_s = coalesce(revoked_unix_s, ?) WHERE id = ?", (now_unix_s, key_id)
            )
            return changed.rowcount == 1

    def all(self) -> dict[bytes, ApiKey]:
        """By digest, oldest first; expired and revoked ones too."""
        with self._connection() as connection:
            rows = connection.execute(SELECT).fetchall()
        return {row[0]: _key(*row[1:]) for row in rows}

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own: calls come from several threads, and rarely."""
        connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        finally:
            connection.close()


def _key(
    key_id: str,
    prefix: str,
    name: str,
    tenant: str,
    request_class: str,
    models: str | None,
    requests_per_minute: int | None,
    is_admin: int,
    created_unix_s: int,
    expires_unix_s: int | None,
    revoked_unix_s: int | None,
) -> ApiKey:
    """Of SELECT's columns, the digest left out."""
    return ApiKey(
        id=key_id,
        prefix=prefix,
        name=name,
        tenant=tenant,
        request_class=RequestClass(request_class),
        models=None if models is None else frozenset(msgspec.json.decode(models, type=list[str])),
        requests_per_minute=requests_per_minute,
        is_admin=bool(is_admin),
        created_unix_s=created_unix_s,
        expires_unix_s=expires_unix_s,
        revoked_unix_s=revoked_unix_s,
    )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """All that is new in one transaction: a kill leaves it done or not begun, and a second router that starts now waits.

    A file is statements that end in ";" at a line's end, and comments hold none.
    """
    folder = files("pagoda_router.keys").joinpath("migrations")
    scripts = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    connection.execute("BEGIN IMMEDIATE")
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    if done > len(scripts):
        raise ConfigError(
            f"PAGODA_DATABASE={path} was written by a newer Pagoda (schema {done}, known {len(scripts)}): upgrade this router"
        )
    for script in scripts[done:]:
        for statement in script.read_text().split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(scripts)}")
    connection.execute("COMMIT")
