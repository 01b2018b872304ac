"""One SQLite file: for one machine, where several router processes may share it.

Write-ahead log with full syncing: what was committed survives kill -9 and a power cut. A connection for each transaction: calls come from
several threads, and rarely.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pagoda_router.database.base import Row, Transaction, Values, migrations, require_known
from pagoda_router.errors import ConfigError, DatabaseError

BUSY_S = 5.0
"""Wait for another process that writes."""


class SqliteDatabase:
    def __init__(self, path: Path) -> None:
        """Opens and migrates. Raises ConfigError."""
        self._path = path
        try:
            with self._connection() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                _migrate(connection, path)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"PAGODA_DATABASE={path} cannot be used: {error}") from None

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[Transaction]:
        try:
            with self._connection() as connection:
                # A transaction that reads first and writes later would not wait for its turn, but fail.
                connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                yield _SqliteTransaction(connection)
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise DatabaseError(str(error)) from error

    def close(self) -> None:
        pass

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Closing it undoes what was not committed."""
        connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        finally:
            connection.close()


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        return self._connection.execute(sql, values).fetchall()

    def change(self, sql: str, values: Values = ()) -> int:
        return self._connection.execute(sql, values).rowcount

    def change_each(self, sql: str, many: Iterable[Values]) -> None:
        self._connection.executemany(sql, many)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """All that is new in one transaction: a kill leaves it done or not begun, and a second router that starts now waits."""
    scripts = migrations("sqlite")
    connection.execute("BEGIN IMMEDIATE")
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    require_known(done, len(scripts), str(path))
    for script in scripts[done:]:
        for statement in script:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(scripts)}")
    connection.execute("COMMIT")
