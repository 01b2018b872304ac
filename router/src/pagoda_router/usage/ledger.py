"""Who used what, in this router: limits and budgets before a request runs; usage by hour, key and model from then on, stored in batches.

Owns the open accounts, the counters, this month's budgets and the rate limits. app.py opens an account for each request that generates;
`__main__` runs the flushing. No request waits for the database; one of a key with limits waits for Redis where there is one.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagoda_router.errors import DatabaseError, RateLimited, SharedLimitsAway, UsageUnavailable
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.limits import RateLimits, Told
from pagoda_router.usage.account import Account, Reservation
from pagoda_router.usage.amounts import NOTHING, Amount, TokenPrices, Used
from pagoda_router.usage.budgets import Budgets
from pagoda_router.usage.counters import Place, UsageCounters
from pagoda_router.usage.months import hour_of
from pagoda_router.usage.store import Question, UsageStore, UsageSum

if TYPE_CHECKING:
    from pagoda_router.usage.shared import SharedLimits

log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""What kill -9 can lose: usage of so long, plus one write. Streams are counted while they run."""
FREE = TokenPrices()
NOTHING_USED = Used()


class UsageLedger:
    def __init__(
        self,
        store: UsageStore | None,
        shared: "SharedLimits | None",
        prices_of: Callable[[str], TokenPrices | None],
        *,
        clock: Callable[[], float],
        calendar: Callable[[], float],
    ) -> None:
        """`prices_of`: by name of the InferenceModel. Without a store usage is counted nowhere, and budgets are what this process saw."""
        self._store = store
        self._shared = shared
        self._prices_of = prices_of
        self._clock = clock
        self._calendar = calendar
        self._limits = RateLimits()
        self._budgets = Budgets(calendar())
        self._counters = UsageCounters()
        self._open: dict[Account, None] = {}
        self._flushing = asyncio.Lock()

    # ------------------------------------------------------------ one request

    def open(self, key: ApiKey, outcome: RequestOutcome, headers: Told) -> Account:
        """Of a request that just arrived; `headers` of its answer get its limits once it reserves, or is refused. Raises RateLimited."""
        account = Account(self, key, outcome, headers)
        if account.is_limited:
            try:
                self._limits.arrive(key, self._clock())
            except RateLimited:
                account.tell(self._limits.told(key, self._clock()))
                raise
        self._open[account] = None
        return account

    async def reserve(
        self, key: ApiKey, model: str, prompt_tokens: int, output_tokens: int, tell: Callable[[Told], None], *, again: bool = False
    ) -> Reservation:
        """All of what it is predicted to need, or nothing. `again`: Redis has counted this request already. Raises RateLimited,
        LargerThanLimit, QuotaSpent."""
        cost = Amount(prompt_tokens + output_tokens, self._priced(model, prompt_tokens, 0, output_tokens))
        self._budgets.turn(self._calendar())
        minute_tokens, now_s = 0, self._clock()
        try:
            minute_tokens = self._limits.reserve(key, prompt_tokens, output_tokens, now_s)
            if key.has_budget:
                self._budgets.reserve(key, cost)
        except BaseException:
            self._limits.settle(key, minute_tokens, 0, now_s)
            raise
        finally:
            tell(self._limits.told(key, now_s))
        reservation = Reservation(minute_tokens, cost if key.has_budget else NOTHING)
        if self._shared is not None:
            await self._share(self._shared, key, reservation, cost, tell, again=again)
        return reservation

    async def _share(
        self, shared: "SharedLimits", key: ApiKey, reservation: Reservation, cost: Amount, tell: Callable[[Told], None], *, again: bool
    ) -> None:
        """The same with what all routers let through; while Redis is away, this router's own limits and the database's sums count."""
        try:
            spent = self._budgets.spent(key.id)
            answer = await shared.reserve(key, self._budgets.month, reservation.minute_tokens, cost, spent, requests=0 if again else 1)
        except SharedLimitsAway:
            return
        except BaseException:
            self._undo(key, reservation)
            raise
        tell(answer.told)
        if answer.refusal is not None:
            self._undo(key, reservation)
            if not again:
                self._limits.give_back_request(key)
            raise answer.refusal
        reservation.lease = answer.lease

    def _undo(self, key: ApiKey, reservation: Reservation) -> None:
        self._limits.settle(key, reservation.minute_tokens, 0, self._clock())
        if reservation.held != NOTHING:
            self._budgets.release(key.id, reservation.held)

    def record(self, account: Account, *, is_over: bool = False) -> None:
        """What it has used since it was looked at last. `is_over`: it holds nothing more."""
        model = account.outcome.model
        used, before = account.used_until_now(self._priced), account.recorded
        if used == before or model is None:
            return
        more = used if before == NOTHING_USED else Used(*map(int.__sub__, used, before))
        now_unix_s = self._calendar()
        place = Place(hour_of(now_unix_s), account.key.id, model, account.key.tenant)
        self._budgets.turn(now_unix_s)
        if self._store is not None:
            self._counters.add(place, 0 if account.is_counted else 1, more)
        account.is_counted = True
        account.recorded = used
        key, spent = account.key, more.amount
        self._budgets.record(key.id, spent)
        if key.has_budget:
            released = account.reservation.release_all() if is_over else account.reservation.release(used.amount)
            self._budgets.release(key.id, released)
            if self._shared is not None:
                self._shared.record(key, self._budgets.month, spent, account.reservation.lease, released)

    def settle(self, account: Account) -> None:
        """It is over, however it ended: what it used is recorded, what it held beyond that is free again."""
        self._open.pop(account, None)
        self.record(account, is_over=True)
        self.release(account)

    def release(self, account: Account) -> None:
        """What it holds and did not use. A key without limits reserves nothing."""
        reservation, key = account.reservation, account.key
        if not account.is_limited:
            return
        account.reservation = Reservation()
        account.is_shared = account.is_shared or reservation.lease is not None
        used = account.recorded.amount
        self._limits.settle(key, reservation.minute_tokens, used.tokens, self._clock())
        rest = reservation.release_all()
        if rest != NOTHING:
            self._budgets.release(key.id, rest)
        if self._shared is not None and reservation.lease is not None:
            self._shared.settle(key, self._budgets.month, reservation.minute_tokens - used.tokens, reservation.lease, rest)

    def _priced(self, model: str, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        return (self._prices_of(model) or FREE).nano_usd(prompt_tokens, cached_tokens, completion_tokens)

    # ------------------------------------------------------------ to the store

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_flushing())
            if self._shared is not None:
                group.create_task(self._shared.run())

    async def _run_flushing(self) -> None:
        """What the database does not take now waits in memory, by hour, key and model, and goes with the next try."""
        complaint = ""
        while self._store is not None:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except DatabaseError as error:
                if str(error) != complaint:
                    log.warning("usage could not be stored and waits in memory: %s", error)
                complaint = str(error)
            else:
                if complaint:
                    log.info("usage can be stored again, and nothing of it was lost")
                complaint = ""

    async def flush(self) -> None:
        """All that was used until now is in the database after it. Raises DatabaseError."""
        if self._store is None:
            return
        async with self._flushing:
            for account in list(self._open):
                if account.outcome.stream:
                    if account.look is not None:
                        account.look()
                    self.record(account)
            now_unix_s = self._calendar()
            self._budgets.turn(now_unix_s)
            for _ in range(2):  # the batch that was under way when the last try failed, and what came after it
                batch, month = self._counters.batch(), self._budgets.month
                totals = await asyncio.to_thread(self._store.write, batch, month, int(now_unix_s))
                self._counters.confirm()
                self._budgets.stored(month, totals, batch.amounts(month) if batch is not None else ())
                if not self._counters.has_more:
                    return

    def now_unix_s(self) -> float:
        return self._calendar()

    async def sums(self, question: Question) -> list[UsageSum]:
        """Up to now as far as this router is concerned, up to FLUSH_S ago for others. Raises UsageUnavailable."""
        if self._store is None:
            raise UsageUnavailable("this router keeps no usage: set PAGODA_DATABASE to a database that survives it")
        try:
            await self.flush()
            return await asyncio.to_thread(self._store.sums, question)
        except DatabaseError as error:
            raise UsageUnavailable(f"the database of usage did not answer: {error}") from error

    async def close(self) -> None:
        """Everything that is known goes out, once."""
        try:
            await self.flush()
        except DatabaseError as error:
            log.error("the last usage could not be stored and is lost: %s", error)
        if self._shared is not None:
            await self._shared.close()
