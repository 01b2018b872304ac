"""The router's database as its stores see it: transactions of plain SQL with `?` for values, whichever server answers.

Knows no table but the schema's own version. Calls block, so callers are in threads. sqlite.py and postgres.py implement it.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any, Protocol

from pagoda_router.errors import ConfigError

Row = tuple[Any, ...]
Values = Sequence[Any]


class Transaction(Protocol):
    def rows(self, sql: str, values: Values = ()) -> list[Row]: ...

    def change(self, sql: str, values: Values = ()) -> int:
        """Rows that it changed."""
        ...

    def change_each(self, sql: str, many: Iterable[Values]) -> None: ...


class Database(Protocol):
    def transaction(self, *, writes: bool = False) -> AbstractContextManager[Transaction]:
        """All of it happens, and lasts, or nothing. Raises DatabaseError, after which a commit may have happened all the same."""
        ...

    def close(self) -> None:
        """Until the next transaction."""
        ...


def migrations(dialect: str) -> list[list[str]]:
    """Statements of each numbered file, in order. A file's statements end in ";" at a line's end, and its comments hold none."""
    folder = files("pagoda_router.database").joinpath("migrations", dialect)
    scripts = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [[statement for statement in script.read_text().split(";\n") if statement.strip()] for script in scripts]


def require_known(done: int, known: int, shown: str) -> None:
    """Raises ConfigError for a schema that a newer router made."""
    if done > known:
        raise ConfigError(f"PAGODA_DATABASE={shown} was written by a newer Pagoda (schema {done}, known {known}): upgrade this router")
