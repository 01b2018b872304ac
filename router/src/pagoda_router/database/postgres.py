"""A PostgreSQL server by URL: for routers on several machines, which share keys and usage by it.

One connection for a process, opened again when it broke: calls are a few a second at most. Imported only where the URL says so.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

from pagoda_router.database.base import Row, Transaction, Values, migrations, require_known
from pagoda_router.errors import ConfigError, DatabaseError

CONNECT_S = 5
STATEMENT_MS = 10_000
"""A server that does not answer for so long is away: what is to be written waits for the next try."""
MIGRATING = 0x7061676F6461
"""Of the advisory lock under which one router at a time changes the schema."""


class PostgresDatabase:
    def __init__(self, url: str) -> None:
        """Connects and migrates. Raises ConfigError, which does not tell the URL's password."""
        self._url = url
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Row] | None = None
        try:
            with self.transaction(writes=True) as transaction:
                _migrate(transaction, _shown(url))
        except DatabaseError as error:
            raise ConfigError(f"PAGODA_DATABASE={_shown(url)} cannot be used: {error}") from None
        except ConfigError:
            self._close()
            raise

    @contextmanager
    def transaction(self, *, writes: bool = False) -> Iterator[Transaction]:
        with self._lock:
            try:
                connection = self._begun()
                try:
                    yield _PostgresTransaction(connection)
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            except psycopg.Error as error:
                self._close()
                raise DatabaseError(_one_line(error)) from error

    def close(self) -> None:
        with self._lock:
            self._close()

    def _begun(self) -> "psycopg.Connection[Row]":
        """With a transaction open. Nothing was done in it yet, so a connection that broke while it was idle may be replaced."""
        if self._connection is not None:
            try:
                self._connection.execute("SELECT 1")
            except psycopg.OperationalError:
                self._close()
            else:
                return self._connection
        self._connection = psycopg.connect(self._url, connect_timeout=CONNECT_S)
        self._connection.execute(f"SET statement_timeout = {STATEMENT_MS}")
        self._connection.commit()
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _PostgresTransaction:
    def __init__(self, connection: "psycopg.Connection[Row]") -> None:
        self._connection = connection

    def rows(self, sql: str, values: Values = ()) -> list[Row]:
        return self._connection.execute(_in_postgres(sql), values).fetchall()

    def change(self, sql: str, values: Values = ()) -> int:
        return self._connection.execute(_in_postgres(sql), values).rowcount

    def change_each(self, sql: str, many: Iterable[Values]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_in_postgres(sql), many)


def _in_postgres(sql: str) -> bytes:
    """Our statements hold no other "?"."""
    return sql.replace("%", "%%").replace("?", "%s").encode()


def _migrate(transaction: Transaction, shown: str) -> None:
    scripts = migrations("postgresql")
    transaction.rows("SELECT pg_advisory_xact_lock(?)", (MIGRATING,))
    transaction.change("CREATE TABLE IF NOT EXISTS pagoda_schema (version BIGINT NOT NULL)")
    found = transaction.rows("SELECT version FROM pagoda_schema")
    done = found[0][0] if found else 0
    require_known(done, len(scripts), shown)
    for script in scripts[done:]:
        for statement in script:
            transaction.change(statement)
    transaction.change("DELETE FROM pagoda_schema")
    transaction.change("INSERT INTO pagoda_schema (version) VALUES (?)", (len(scripts),))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"postgresql://{parts.hostname or ''}{parts.path}"


def _one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__
