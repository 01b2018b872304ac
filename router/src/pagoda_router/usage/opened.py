"""A process's settings → its ledger, with what keys have spent this month read before the first request. Called by `__main__` once."""

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagoda_router.database.base import Database
from pagoda_router.errors import ConfigError, DatabaseError
from pagoda_router.usage.amounts import TokenPrices
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.usage.store import UsageStore

if TYPE_CHECKING:
    from pagoda_router.usage.shared import SharedLimits


async def opened_ledger(
    database: Database | None, redis_url: str | None, router_id: str, prices_of: Callable[[str], TokenPrices | None]
) -> UsageLedger:
    """Raises ConfigError."""
    process = f"{router_id}/{secrets.token_hex(6)}"
    store = None if database is None else UsageStore(database, process)
    ledger = UsageLedger(store, _shared(redis_url, process), prices_of, clock=time.monotonic, calendar=time.time)
    try:
        await ledger.flush()
    except DatabaseError as error:
        raise ConfigError(f"PAGODA_DATABASE does not say what keys have spent: {error}") from None
    return ledger


def _shared(url: str | None, process: str) -> "SharedLimits | None":
    if url is None:
        return None
    # Imported here: a router that shares nothing need not pay for its client.
    from pagoda_router.usage.shared import SharedLimits

    try:
        return SharedLimits(url, process)
    except ValueError as error:
        raise ConfigError(f"PAGODA_REDIS is not a URL that can be used: {error}") from None
