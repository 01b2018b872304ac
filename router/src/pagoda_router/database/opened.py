"""PAGODA_DATABASE → the database that it names. Called by `__main__` once."""

from pathlib import Path

from pagoda_router.database.base import Database
from pagoda_router.database.sqlite import SqliteDatabase

POSTGRES = ("postgresql://", "postgres://")


def opened(target: str) -> Database:
    """A URL of PostgreSQL, or the path of a SQLite file. Raises ConfigError."""
    if not target.startswith(POSTGRES):
        return SqliteDatabase(Path(target))
    # Imported here: its driver costs memory that a router with a file need not pay.
    from pagoda_router.database.postgres import PostgresDatabase

    return PostgresDatabase(target)
