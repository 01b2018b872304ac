"""/admin/v1/keys on the public port: create, list, limit and revoke, for holders of an admin key. Checks what was sent.

The keyring does it; no store is known here. app.py calls it after it has checked the caller's key.
"""

from dataclasses import replace
from typing import Annotated, Any, TypeVar

import msgspec

from pagoda_router.catalog import Catalog
from pagoda_router.errors import BadRequest, MethodNotAllowed, Starting
from pagoda_router.generation import RequestClass
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring

KEYS = "/admin/v1/keys"
NANO = 1_000_000_000
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Count = Annotated[int, msgspec.Meta(gt=0, le=1_000_000_000)]
Tokens = Annotated[int, msgspec.Meta(gt=0, le=10**15)]
Usd = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]


class Limits(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What may change in a key that exists; null takes a limit away."""

    requests_per_minute: Count | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_minute: Count | msgspec.UnsetType | None = msgspec.UNSET
    monthly_tokens: Tokens | msgspec.UnsetType | None = msgspec.UNSET
    monthly_usd: Usd | msgspec.UnsetType | None = msgspec.UNSET

    def given_to(self, key: ApiKey) -> ApiKey:
        limits: dict[str, Any] = {name: getattr(self, name) for name in ("requests_per_minute", "tokens_per_minute", "monthly_tokens")}
        usd = self.monthly_usd
        limits["monthly_nano_usd"] = round(usd * NANO) if isinstance(usd, float) else usd
        return replace(key, **{name: limit for name, limit in limits.items() if limit is not msgspec.UNSET})


class KeyRequest(Limits, kw_only=True):
    name: Text
    tenant: Text = "default"
    request_class: RequestClass = msgspec.field(default=RequestClass.LATENCY, name="class")
    models: list[Text] | None = None
    admin: bool = False
    expires_at: Annotated[int, msgspec.Meta(gt=0)] | None = None


Asked = TypeVar("Asked", bound=Limits)
_UNKNOWN, _MISSING = "Object contains unknown field ", "Object missing required field "
"""As msgspec says it."""


class KeyAdmin:
    def __init__(self, keyring: Keyring, catalog: Catalog) -> None:
        self._keyring = keyring
        self._catalog = catalog

    async def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON. `path` is KEYS or below it. Raises BadRequest, NotFound, MethodNotAllowed, KeysUnavailable."""
        key_id = path.removeprefix(KEYS).removeprefix("/")
        if key_id:
            return 200, msgspec.json.encode(key_document(await self._one(method, key_id, body)))
        if method == "GET":
            return 200, msgspec.json.encode({"object": "list", "data": [key_document(key) for key in await self._keyring.latest()]})
        if method != "POST":
            raise MethodNotAllowed(f"{KEYS} takes GET or POST, not {method[:20]}", allow="GET, POST")
        secret, key = await self._keyring.create(_wanted(body))
        return 201, msgspec.json.encode({**key_document(key), "key": secret, "unknown_models": self._unknown(key)})

    def _unknown(self, key: ApiKey) -> list[str]:
        """Of the names that it may ask, those that nobody answers to now. No error: a model may come after its key."""
        try:
            return sorted((key.models or frozenset()) - {entry.served_name for entry in self._catalog.list()})
        except Starting:
            return []

    async def _one(self, method: str, key_id: str, body: bytes) -> ApiKey:
        if method == "DELETE":
            return await self._keyring.revoke(key_id)
        if method != "PATCH":
            raise MethodNotAllowed(f"{KEYS}/ID takes PATCH or DELETE, not {method[:20]}", allow="PATCH, DELETE")
        return await self._keyring.limit(key_id, _decoded(body, Limits).given_to)


def _decoded(body: bytes, kind: type[Asked]) -> Asked:
    """Raises BadRequest, which names the field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).replace("`", "").partition(" - at $.")
        if what.startswith(_UNKNOWN):
            path = what.removeprefix(_UNKNOWN)
            what = f"no such field here: there is {', '.join(field.encode_name for field in msgspec.structs.fields(kind))}"
        elif what.startswith(_MISSING):
            path, what = what.removeprefix(_MISSING), "it is required"
        elif path == "class":
            what = f"write {' or '.join(RequestClass)}"
        raise BadRequest(f"{path}: {what}" if path else what, param=path or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from None


def _wanted(body: bytes) -> ApiKey:
    asked = _decoded(body, KeyRequest)
    models = None if asked.models is None else frozenset(asked.models)
    if models is not None and not models:
        raise BadRequest("models is empty: name some, or leave it out for all", param="models")
    return asked.given_to(
        ApiKey(
            id="",
            prefix="",
            name=asked.name,
            tenant=asked.tenant,
            request_class=asked.request_class,
            models=models,
            is_admin=asked.admin,
            expires_unix_s=asked.expires_at,
        )
    )


def key_document(key: ApiKey) -> dict[str, Any]:
    return {
        "object": "api_key",
        "id": key.id,
        "prefix": key.prefix,
        "name": key.name,
        "tenant": key.tenant,
        "class": key.request_class,
        "models": None if key.models is None else sorted(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "monthly_tokens": key.monthly_tokens,
        "monthly_usd": None if key.monthly_nano_usd is None else key.monthly_nano_usd / NANO,
        "admin": key.is_admin,
        "created_at": key.created_unix_s,
        "expires_at": key.expires_unix_s,
        "revoked_at": key.revoked_unix_s,
    }
