"""/admin/v1/keys on the public port: create, list and revoke, for holders of an admin key. Checks what was sent; the keyring does it.

Knows no store. app.py calls it after it has checked the caller's key.
"""

from typing import Annotated, Any

import msgspec

from pagoda_router.errors import BadRequest, MethodNotAllowed
from pagoda_router.generation import RequestClass
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring

KEYS = "/admin/v1/keys"
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Text
    tenant: Text = "default"
    request_class: RequestClass = msgspec.field(default=RequestClass.LATENCY, name="class")
    models: list[Text] | None = None
    requests_per_minute: Annotated[int, msgspec.Meta(gt=0, le=1_000_000_000)] | None = None
    admin: bool = False
    expires_at: Annotated[int, msgspec.Meta(gt=0)] | None = None


class KeyAdmin:
    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON. `path` is KEYS or below it. Raises BadRequest, NotFound, MethodNotAllowed, KeysUnavailable."""
        key_id = path.removeprefix(KEYS).removeprefix("/")
        if key_id:
            if method != "DELETE":
                raise MethodNotAllowed(f"{KEYS}/ID takes DELETE, not {method[:20]}", allow="DELETE")
            return 200, msgspec.json.encode(key_document(await self._keyring.revoke(key_id)))
        if method == "GET":
            return 200, msgspec.json.encode({"object": "list", "data": [key_document(key) for key in self._keyring.list()]})
        if method != "POST":
            raise MethodNotAllowed(f"{KEYS} takes GET or POST, not {method[:20]}", allow="GET, POST")
        secret, key = await self._keyring.create(_wanted(body))
        return 201, msgspec.json.encode({**key_document(key), "key": secret})


def _wanted(body: bytes) -> ApiKey:
    try:
        asked = msgspec.json.decode(body, type=KeyRequest)
    except msgspec.MsgspecError as error:
        raise BadRequest(f"this is no key to be made: {error}") from None
    models = None if asked.models is None else frozenset(asked.models)
    if models is not None and not models:
        raise BadRequest("models is empty: name some, or leave it out for all", param="models")
    return ApiKey(
        id="",
        prefix="",
        name=asked.name,
        tenant=asked.tenant,
        request_class=asked.request_class,
        models=models,
        requests_per_minute=asked.requests_per_minute,
        is_admin=asked.admin,
        expires_unix_s=asked.expires_at,
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
        "admin": key.is_admin,
        "created_at": key.created_unix_s,
        "expires_at": key.expires_unix_s,
        "revoked_at": key.revoked_unix_s,
    }
