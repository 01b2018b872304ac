"""An API key: whose it is and what it may do. Pure: a secret is made here from bytes that the caller draws, and only its digest is kept.

Knows no store and no HTTP. The keyring looks keys up, the store keeps them.
"""

import base64
import hashlib
from dataclasses import dataclass

from pagoda_router.errors import Forbidden
from pagoda_router.generation import NOBODY, RequestClass

SECRET_BYTES = 32
SHOWN_CHARS = 12
"""Of a secret, kept readable so that a list can be matched with what a client holds: "pgd-" and 48 of its 256 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    prefix: str
    """The first characters of the secret."""
    name: str
    tenant: str
    """Whose work it is: requests wait fairly between tenants."""
    request_class: RequestClass = NOBODY.request_class
    """Of its requests, unless one says that it is of a later."""
    models: frozenset[str] | None = None
    """Served names it may ask. None: all."""
    requests_per_minute: int | None = None
    """To the endpoints that generate. None: as many as it likes."""
    tokens_per_minute: int | None = None
    """Prompt and output together. None: no limit."""
    monthly_tokens: int | None = None
    """The same in one calendar month of UTC."""
    monthly_nano_usd: int | None = None
    """By the models' prices, in one calendar month of UTC: billionths of a US dollar, so that sums are exact. None: no budget."""
    is_admin: bool = False
    """May make and revoke keys, and read metrics and usage."""
    created_unix_s: int = 0
    expires_unix_s: int | None = None
    """None: never."""
    revoked_unix_s: int | None = None

    @property
    def has_budget(self) -> bool:
        return self.monthly_tokens is not None or self.monthly_nano_usd is not None

    @property
    def has_limit(self) -> bool:
        return self.requests_per_minute is not None or self.tokens_per_minute is not None or self.has_budget

    def may_ask(self, served_name: str) -> bool:
        return self.models is None or served_name in self.models

    def require_model(self, served_name: str) -> None:
        """Raises Forbidden."""
        if not self.may_ask(served_name):
            raise Forbidden(
                f"this key may not ask {served_name[:200]}: GET /v1/models lists what it may", param="model", code="model_not_allowed"
            )

    def require_admin(self, what: str) -> None:
        """Raises Forbidden."""
        if not self.is_admin:
            raise Forbidden(f"{what} needs an admin key: make one with `pagoda keys create --admin`")


ANYONE = ApiKey(id="anyone", prefix="", name="no key is needed", tenant=NOBODY.tenant, is_admin=True)
"""Of a router on loopback that has no keys."""
BOOTSTRAP = ApiKey(id="bootstrap", prefix="", name="PAGODA_API_KEY", tenant=NOBODY.tenant, is_admin=True)


def secret_of(drawn: bytes) -> str:
    """`drawn`: SECRET_BYTES from the system's random source."""
    return "pgd-" + base64.urlsafe_b64encode(drawn).rstrip(b"=").decode()


def digest_of(secret: bytes) -> bytes:
    """SHA-256 without salt or stretching: a secret has 256 random bits, so that neither guessing nor tables help."""
    return hashlib.sha256(secret).digest()
