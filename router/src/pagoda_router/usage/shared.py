"""Limits and budgets that several routers share, in Redis: one script reserves for a request, another settles for all of them in batches.

    limits:KEY          requests and tokens left of this minute, and when that was
    budget:KEY:MONTH    tokens and nano USD spent; the larger of it and the database's sum counts, so a Redis that lost all is no gift
    held:KEY            by lease, which is one router's: what is held for requests that run. Not renewed, as after kill -9, it ends
    batch:ROUTER        number of the last batch settled

The ledger reserves, once a request and once more when another model answers it; `__main__` runs the settling. While Redis is away each
router goes on by its own limits.
The scripts make names of keys from ids, which Redis Cluster does not allow.
"""

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from pagoda_router.errors import RouterError, SharedLimitsAway
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.limits import MINUTE_S, Told, requests_spent, tokens_spent, told_of
from pagoda_router.usage.amounts import NOTHING, Amount
from pagoda_router.usage.budgets import refused
from pagoda_router.usage.months import Month

log = logging.getLogger(__name__)

PREFIX = "pagoda:"
ANSWER_S = 0.25
"""A request waits for Redis no longer."""
AWAY_S = 1.0
"""After that nobody asks for so long, except the settling."""
SETTLE_S = 0.2
LEASE_S = 30.0
RENEW_S = 10.0
MONTH_KEPT_S = 62 * 86_400
CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    refusal: RouterError | None
    told: Told
    lease: str


@dataclass(slots=True)
class _Unsettled:
    """Of one key, month and lease."""

    minute_tokens: int = 0
    spent: Amount = NOTHING
    released: Amount = NOTHING


class SharedLimits:
    def __init__(self, url: str, router_id: str, *, answer_s: float = ANSWER_S) -> None:
        """`url`: redis://, rediss:// or unix://. `router_id`: of this process alone. `answer_s`: a Redis that takes longer is away."""
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=answer_s, socket_timeout=answer_s, socket_connect_timeout=answer_s
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._router_id = router_id
        scripts = files("pagoda_router.usage")
        self._reserve = self._redis.register_script(scripts.joinpath("reserve.lua").read_text())
        self._settle = self._redis.register_script(scripts.joinpath("settle.lua").read_text())
        self._lease = self._new_lease()
        self._held: dict[tuple[str, str], Amount] = {}
        """By key id and lease: what Redis holds for this router, so that it can be renewed."""
        self._unsettled: dict[tuple[str, str, str], _Unsettled] = {}
        """By key id, month and lease ("": none)."""
        self._leaving: list[Any] | None = None
        """The batch that was not confirmed. It stays the same until it is."""
        self._batch = 0
        self._away_until_s = 0.0
        self._renewed_s = 0.0

    async def reserve(
        self, key: ApiKey, month: Month, minute_tokens: int, cost: Amount, stored: Amount, *, requests: int = 1
    ) -> SharedAnswer:
        """All or nothing. `stored`: spent this month, as far as this router knows. `requests`: 0 of one that was counted already. Raises
        SharedLimitsAway."""
        if time.monotonic() < self._away_until_s:
            raise SharedLimitsAway
        lease = self._lease
        names = [f"{PREFIX}limits:{key.id}", f"{PREFIX}budget:{key.id}:{month.name}", f"{PREFIX}held:{key.id}"]
        asked = [
            *(key.requests_per_minute or 0, key.tokens_per_minute or 0, minute_tokens),
            *(-1 if key.monthly_tokens is None else key.monthly_tokens, -1 if key.monthly_nano_usd is None else key.monthly_nano_usd),
            *(*cost, *stored, lease, int(LEASE_S * 1000), requests),
        ]
        asking = asyncio.ensure_future(self._ask(names, asked))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            # The client left; what Redis reserves for it all the same is given back.
            asking.add_done_callback(lambda done: self._give_back(done, key, month, minute_tokens, cost, lease))
            raise
        return self._answered(key, month, minute_tokens, cost, lease, answer)

    async def _ask(self, names: list[str], asked: list[Any]) -> list[bytes]:
        try:
            answer: list[bytes] = await self._reserve(keys=names, args=asked)
        except (RedisError, OSError, TimeoutError) as error:
            self._lost(error)
            # It may have been reserved all the same: nobody knows what this lease holds, so it is renewed no more and ends by itself.
            self._lease = self._new_lease()
            raise SharedLimitsAway from error
        return answer

    def _answered(self, key: ApiKey, month: Month, minute_tokens: int, cost: Amount, lease: str, answer: list[bytes]) -> SharedAnswer:
        what, requests, tokens = answer[0].decode(), float(answer[1]), float(answer[2])
        told: Told = []
        if key.requests_per_minute is not None:
            told += told_of(b"requests", key.requests_per_minute, requests)
        if key.tokens_per_minute is not None:
            told += told_of(b"tokens", key.tokens_per_minute, tokens)
        refusal: RouterError | None = None
        if what == "requests":
            refusal = requests_spent(key, (1 - requests) * MINUTE_S / (key.requests_per_minute or 1))
        elif what == "tokens":
            refusal = tokens_spent(key, minute_tokens, (minute_tokens - tokens) * MINUTE_S / (key.tokens_per_minute or 1))
        elif what == "budget":
            spent, held = Amount(int(answer[3]), int(answer[4])), Amount(int(answer[5]), int(answer[6]))
            refusal = refused(key, month, spent, held, cost)
            assert refusal is not None, "Redis and budgets.py judge alike"
        elif key.has_budget:
            self._hold(key.id, lease, cost)
        return SharedAnswer(refusal, told, lease)

    def _give_back(
        self, done: "asyncio.Future[list[bytes]]", key: ApiKey, month: Month, minute_tokens: int, cost: Amount, lease: str
    ) -> None:
        if not done.cancelled() and done.exception() is None and not done.result()[0]:
            self._answered(key, month, minute_tokens, cost, lease, done.result())
            self.settle(key, month, minute_tokens, lease, cost if key.has_budget else NOTHING)

    def record(self, key: ApiKey, month: Month, spent: Amount, lease: str | None, released: Amount) -> None:
        """Spent by a running request, which therefore need not be held any more."""
        unsettled = self._unsettled_of(key, month, lease)
        unsettled.spent = unsettled.spent.plus(spent)
        self._release(key, lease, unsettled, released)

    def settle(self, key: ApiKey, month: Month, minute_tokens: int, lease: str, released: Amount) -> None:
        """A request is over. `minute_tokens`: of those reserved, not used; negative where it used more."""
        unsettled = self._unsettled_of(key, month, lease)
        unsettled.minute_tokens += minute_tokens
        self._release(key, lease, unsettled, released)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(SETTLE_S)
            await self.flush()

    async def flush(self) -> None:
        """Settles what is over, and renews the leases of what runs. Failure is logged, and tried again next time."""
        batch = self._leaving or self._next_batch()
        if batch is None:
            return
        self._leaving = batch
        try:
            await self._settle(keys=[f"{PREFIX}batch:{self._router_id}"], args=batch)
        except (RedisError, OSError, TimeoutError) as error:
            self._lost(error)
            return
        self._leaving = None
        if self._away_until_s:
            log.info("Redis answers again: limits are shared")
            self._away_until_s = 0.0

    async def close(self) -> None:
        for _ in range(2):  # the batch that was under way, and what came after it
            await self.flush()
        await self._redis.aclose()

    def _next_batch(self) -> list[Any] | None:
        now_s = time.monotonic()
        if self._held and now_s - self._renewed_s >= RENEW_S:
            self._renewed_s = now_s
            for key_id, lease in self._held:
                if lease == self._lease:
                    self._unsettled.setdefault((key_id, "", lease), _Unsettled())
        if not self._unsettled:
            return None
        unsettled, self._unsettled = self._unsettled, {}
        self._batch += 1
        batch: list[Any] = [PREFIX, self._batch, int(LEASE_S * 1000), MONTH_KEPT_S]
        for (key_id, month, lease), each in unsettled.items():
            batch += (key_id, month, each.minute_tokens, *each.spent, lease, *each.released)
        return batch

    def _unsettled_of(self, key: ApiKey, month: Month, lease: str | None) -> _Unsettled:
        return self._unsettled.setdefault((key.id, month.name, lease or ""), _Unsettled())

    def _release(self, key: ApiKey, lease: str | None, unsettled: _Unsettled, released: Amount) -> None:
        if lease is not None and released != NOTHING:
            unsettled.released = unsettled.released.plus(released)
            self._hold(key.id, lease, NOTHING.minus(released))

    def _hold(self, key_id: str, lease: str, more: Amount) -> None:
        held = self._held.get((key_id, lease), NOTHING).plus(more)
        if held == NOTHING:
            self._held.pop((key_id, lease), None)
        else:
            self._held[key_id, lease] = held

    def _lost(self, error: Exception) -> None:
        if not self._away_until_s:
            log.warning("Redis does not answer; each router goes by its own limits until it does: %s", error or type(error).__name__)
        self._away_until_s = time.monotonic() + AWAY_S

    def _new_lease(self) -> str:
        return f"{self._router_id}/{secrets.token_hex(4)}"
