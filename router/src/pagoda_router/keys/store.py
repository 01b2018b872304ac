"""Keys in the router's database: the one place that reads and writes them. Blocking calls; the keyring makes them in a thread."""

from typing import Any

import msgspec

from pagoda_router.database.base import Database
from pagoda_router.generation import RequestClass
from pagoda_router.keys.key import ApiKey

COLUMNS = (
    *("digest", "id", "prefix", "name", "tenant", "request_class", "models", "requests_per_minute", "tokens_per_minute", "monthly_tokens"),
    *("monthly_nano_usd", "is_admin", "created_unix_s", "expires_unix_s", "revoked_unix_s"),
)
INSERT = f"INSERT INTO api_key ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608  names of columns
SELECT = f"SELECT {', '.join(COLUMNS)} FROM api_key ORDER BY created_unix_s, id"  # noqa: S608
LIMIT = """UPDATE api_key SET requests_per_minute = ?, tokens_per_minute = ?, monthly_tokens = ?, monthly_nano_usd = ?
WHERE id = ? AND revoked_unix_s IS NULL"""
REVOKE = "UPDATE api_key SET revoked_unix_s = coalesce(revoked_unix_s, ?) WHERE id = ?"


class KeyStore:
    """Its calls raise DatabaseError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, digest: bytes, key: ApiKey) -> None:
        with self._database.transaction(writes=True) as transaction:
            transaction.change(INSERT, _row(digest, key))

    def limit(self, key: ApiKey) -> bool:
        """Gives the key of this id these limits and budgets. False: there is none, or it is revoked."""
        limits = (key.requests_per_minute, key.tokens_per_minute, key.monthly_tokens, key.monthly_nano_usd)
        with self._database.transaction(writes=True) as transaction:
            return transaction.change(LIMIT, (*limits, key.id)) == 1

    def revoke(self, key_id: str, now_unix_s: int) -> bool:
        """False: there is no such key. The first revocation's time stays."""
        with self._database.transaction(writes=True) as transaction:
            return transaction.change(REVOKE, (now_unix_s, key_id)) == 1

    def all(self) -> dict[bytes, ApiKey]:
        """By digest, oldest first; expired and revoked ones too."""
        with self._database.transaction() as transaction:
            rows = transaction.rows(SELECT)
        return {row[0]: _key(dict(zip(COLUMNS, row, strict=True))) for row in rows}


def _row(digest: bytes, key: ApiKey) -> list[Any]:
    models = None if key.models is None else msgspec.json.encode(sorted(key.models)).decode()
    written: dict[str, Any] = {"digest": digest, "models": models, "is_admin": int(key.is_admin), "request_class": key.request_class.value}
    return [written[column] if column in written else getattr(key, column) for column in COLUMNS]


def _key(row: dict[str, Any]) -> ApiKey:
    del row["digest"]
    models = row.pop("models")
    return ApiKey(
        models=None if models is None else frozenset(msgspec.json.decode(models, type=list[str])),
        request_class=RequestClass(row.pop("request_class")),
        is_admin=bool(row.pop("is_admin")),
        **row,
    )
