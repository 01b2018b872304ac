"""The keys that this router knows now, in memory: what each request is checked against, without I/O.

Owns the lookup table; refreshed from the store every few seconds, at once after this router's own changes. app.py asks, `__main__` runs it.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from pagoda_router.errors import BadRequest, DatabaseError, KeysUnavailable, NotFound, Unauthorized
from pagoda_router.keys.key import ANYONE, BOOTSTRAP, SECRET_BYTES, SHOWN_CHARS, ApiKey, digest_of, secret_of
from pagoda_router.keys.store import KeyStore

log = logging.getLogger(__name__)

REFRESH_S = 5.0
"""A key revoked through another process that shares the database stops working within so long, plus one read of the table."""


class Keyring:
    def __init__(self, bootstrap: str | None, store: KeyStore | None, *, calendar: Callable[[], float]) -> None:
        """`bootstrap`: an admin key that needs no store. None: no key is needed at all; one that is known still says whose a request is."""
        self._bootstrap = None if bootstrap is None else digest_of(bootstrap.encode())
        self._store = store
        self._calendar = calendar
        self._known: dict[bytes, ApiKey] = {} if store is None else store.all()

    @property
    def is_open(self) -> bool:
        return self._bootstrap is None

    def check(self, authorization: bytes | None) -> ApiKey:
        """Of an Authorization header. Raises Unauthorized."""
        if authorization is None:
            if self.is_open:
                return ANYONE
            raise Unauthorized("an API key is needed: send the header Authorization: Bearer <key>", code="missing_api_key")
        scheme, _, secret = authorization.partition(b" ")
        digest = digest_of(secret.strip())
        key = self._known.get(digest) if scheme.lower() == b"bearer" else None
        if key is not None:
            return self._usable(key)
        if self._bootstrap is None:
            return ANYONE  # OpenAI clients always send something
        if scheme.lower() != b"bearer" or not hmac.compare_digest(digest, self._bootstrap):
            raise Unauthorized("the API key is not the right one: check the header Authorization: Bearer <key>")
        return BOOTSTRAP

    def _usable(self, key: ApiKey) -> ApiKey:
        if key.revoked_unix_s is not None:
            raise Unauthorized(f"the API key {key.prefix}… has been revoked: ask for another")
        if key.expires_unix_s is not None and self._calendar() >= key.expires_unix_s:
            raise Unauthorized(f"the API key {key.prefix}… has expired: ask for another")
        return key

    async def latest(self) -> list[ApiKey]:
        """Those that other routers made too: read anew. While the store cannot be read, those known last."""
        if self._store is not None:
            with suppress(DatabaseError):
                await self._refresh(self._store)
        return self.list()

    def list(self) -> list[ApiKey]:
        """Of this memory: as old as REFRESH_S at most."""
        return list(self._known.values())

    async def create(self, wanted: ApiKey) -> tuple[str, ApiKey]:
        """The secret, which nobody can read again, and the key: `wanted` with id, prefix, creation. Raises BadRequest, KeysUnavailable."""
        if wanted.expires_unix_s is not None and wanted.expires_unix_s <= self._calendar():
            raise BadRequest("expires_at is in the past: send Unix seconds to come, or leave it out", param="expires_at")
        secret = secret_of(secrets.token_bytes(SECRET_BYTES))
        key = replace(
            wanted, id="key-" + secrets.token_hex(8), prefix=secret[:SHOWN_CHARS], created_unix_s=int(self._calendar()), revoked_unix_s=None
        )
        store = self._stored()
        try:
            await asyncio.to_thread(store.add, digest_of(secret.encode()), key)
            await self._refresh(store)
        except DatabaseError as error:
            _unavailable(error)
        return secret, key

    async def limit(self, key_id: str, change: Callable[[ApiKey], ApiKey]) -> ApiKey:
        """With the limits and budgets that `change` gives it. Raises NotFound, KeysUnavailable, and what `change` raises."""
        store = self._stored()
        try:
            await self._refresh(store)
            key = next((key for key in self._known.values() if key.id == key_id and key.revoked_unix_s is None), None)
            if key is None or not await asyncio.to_thread(store.limit, changed := change(key)):
                raise NotFound(f"there is no {_told(key_id)} that works: GET /admin/v1/keys lists them")
            await self._refresh(store)
        except DatabaseError as error:
            _unavailable(error)
        return changed

    async def revoke(self, key_id: str) -> ApiKey:
        """Works no more, in this router, once this returns. Raises NotFound, KeysUnavailable."""
        store = self._stored()
        try:
            found = await asyncio.to_thread(store.revoke, key_id, int(self._calendar()))
            await self._refresh(store)
        except DatabaseError as error:
            _unavailable(error)
        if not found:
            raise NotFound(f"there is no {_told(key_id)}: GET /admin/v1/keys lists them")
        return next(key for key in self._known.values() if key.id == key_id)

    async def run(self) -> None:
        """Until cancelled. While the store cannot be read, what was known last goes on."""
        complaint = ""
        while self._store is not None:
            await asyncio.sleep(REFRESH_S)
            try:
                await self._refresh(self._store)
            except DatabaseError as error:
                if str(error) != complaint:
                    log.warning("keys could not be read again; those known go on working: %s", error)
                complaint = str(error)
            else:
                if complaint:
                    log.info("keys can be read again")
                complaint = ""

    async def _refresh(self, store: KeyStore) -> None:
        self._known = await asyncio.to_thread(store.all)

    def _stored(self) -> KeyStore:
        if self._store is None:
            raise KeysUnavailable("this router keeps no keys: set PAGODA_DATABASE to a database that survives it")
        return self._store


def _told(key_id: str) -> str:
    """Who sends a secret where an id belongs must not read it again in an answer, nor others in a log."""
    return f"key {key_id[:80]}" if key_id.startswith("key-") else "key of this id (an id is key-…, and the key itself is none)"


def _unavailable(error: DatabaseError) -> NoReturn:
    raise KeysUnavailable(f"the database of keys did not answer: {error}") from error
