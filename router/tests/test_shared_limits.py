"""Limits and budgets of several routers in a real Redis: one limit for all, no double counting, and each router's own while it is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis
from servers import RedisServer

from pagoda_router.errors import QuotaSpent, RateLimited, RouterError, SharedLimitsAway
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.limits import Told
from pagoda_router.usage import shared as shared_module
from pagoda_router.usage.account import Account
from pagoda_router.usage.amounts import NOTHING, Amount
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.usage.months import month_of
from pagoda_router.usage.shared import SharedLimits

NOW_S = 1_795_000_000
MONTH = month_of(NOW_S)


def key(**limits: int) -> ApiKey:
    return ApiKey(id="key-1", prefix="pgd-abc", name="n", tenant="t", **limits)  # type: ignore[arg-type]


@asynccontextmanager
async def routers(redis: RedisServer, count: int) -> AsyncIterator[list[SharedLimits]]:
    made = [SharedLimits(redis.url, f"router-{number}", answer_s=30) for number in range(count)]  # a busy machine is no Redis that is away
    try:
        yield made
    finally:
        for each in made:
            await each.close()


async def refusal_of(limits: SharedLimits, of: ApiKey, minute_tokens: int = 0, cost: Amount = NOTHING) -> RouterError | None:
    return (await limits.reserve(of, MONTH, minute_tokens, cost, NOTHING)).refusal


async def test_routers_let_through_one_limit_together_however_they_race(redis: RedisServer) -> None:
    async with routers(redis, 4) as several:
        asked = [refusal_of(several[number % 4], key(requests_per_minute=10, tokens_per_minute=700), 100) for number in range(40)]
        refusals = [each for each in await asyncio.gather(*asked) if each is not None]
    assert len(refusals) == 40 - 7, "the tokens are for seven of them"
    assert {type(each) for each in refusals} == {RateLimited}
    assert all(0 < (each.retry_after_s or 0) <= 60 for each in refusals)


async def test_what_was_not_used_comes_back_to_all(redis: RedisServer) -> None:
    limited = key(tokens_per_minute=1000)
    async with routers(redis, 2) as (ours, theirs):
        answer = await ours.reserve(limited, MONTH, 1000, NOTHING, NOTHING)
        assert dict(answer.told)[b"x-ratelimit-remaining-tokens"] == b"0"
        assert isinstance(await refusal_of(theirs, limited, 500), RateLimited)
        ours.settle(limited, MONTH, 900, answer.lease, NOTHING)
        await ours.flush()
        assert await refusal_of(theirs, limited, 500) is None


async def test_a_budget_counts_what_all_have_spent_and_hold(redis: RedisServer) -> None:
    budgeted = key(monthly_tokens=1000)
    async with routers(redis, 2) as (ours, theirs):
        answer = await ours.reserve(budgeted, MONTH, 0, Amount(600), NOTHING)
        refusal = await refusal_of(theirs, budgeted, 0, Amount(600))
        assert isinstance(refusal, QuotaSpent)
        assert "1000 of its 1000 tokens of 2026-11 left, 600 of them held" in refusal.message
        ours.record(budgeted, MONTH, Amount(100), answer.lease, Amount(100))
        ours.settle(budgeted, MONTH, 0, answer.lease, Amount(500))
        await ours.flush()
        assert await refusal_of(theirs, budgeted, 0, Amount(900)) is None
        assert isinstance(await refusal_of(ours, budgeted, 0, Amount(1)), QuotaSpent)
        assert not ours._held


async def test_the_databases_sum_counts_where_redis_knows_less(redis: RedisServer) -> None:
    async with routers(redis, 1) as (ours,):
        answer = await ours.reserve(key(monthly_nano_usd=1000), MONTH, 0, Amount(1, 300), Amount(0, 800))
        assert isinstance(answer.refusal, QuotaSpent)


async def test_a_batch_whose_answer_was_lost_is_counted_once(redis: RedisServer) -> None:
    budgeted = key(monthly_tokens=1000)
    async with routers(redis, 1) as (ours,):
        ours.record(budgeted, MONTH, Amount(400), None, NOTHING)
        batch = ours._next_batch()
        assert batch is not None
        ours._leaving = batch
        await ours._settle(keys=["pagoda:batch:router-0"], args=batch)  # its answer is lost on the way
        await ours.flush()
        assert ours._leaving is None
        assert await refusal_of(ours, budgeted, 0, Amount(600)) is None


async def test_what_a_killed_router_held_ends_with_its_lease(redis: RedisServer) -> None:
    budgeted = key(monthly_tokens=1000)
    async with routers(redis, 1) as (ours,), Redis.from_url(redis.url) as client:
        killed = SharedLimits(redis.url, "killed", answer_s=30)
        await killed.reserve(budgeted, MONTH, 0, Amount(1000), NOTHING)
        await killed._redis.aclose()
        assert isinstance(await refusal_of(ours, budgeted, 0, Amount(600)), QuotaSpent)
        (lease,) = await client.hkeys("pagoda:held:key-1")
        await client.hset("pagoda:held:key-1", lease, "1000 0 1")  # its time is over
        assert await refusal_of(ours, budgeted, 0, Amount(600)) is None
        assert lease not in await client.hkeys("pagoda:held:key-1")


async def test_a_running_request_keeps_its_lease(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "RENEW_S", 0.0)
    async with routers(redis, 1) as (ours,), Redis.from_url(redis.url) as client:
        answer = await ours.reserve(key(monthly_tokens=1000), MONTH, 0, Amount(1000), NOTHING)
        before = await client.hget("pagoda:held:key-1", answer.lease)
        await client.hset("pagoda:held:key-1", answer.lease, b"1000 0 " + str(int(before.split()[2]) - 5000).encode())
        await ours.flush()
        after = await client.hget("pagoda:held:key-1", answer.lease)
        assert int(after.split()[2]) >= int(before.split()[2])


async def test_a_client_that_leaves_while_redis_is_asked_holds_nothing(redis: RedisServer) -> None:
    limited = key(tokens_per_minute=1000, monthly_tokens=1000)
    async with routers(redis, 1) as (ours,):
        asking = asyncio.create_task(ours.reserve(limited, MONTH, 1000, Amount(1000), NOTHING))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(10):
            while not ours._unsettled:
                await asyncio.sleep(0)
        await ours.flush()
        assert await refusal_of(ours, limited, 1000, Amount(1000)) is None


def ledger_with(limits: SharedLimits) -> UsageLedger:
    return UsageLedger(None, limits, lambda model: None, clock=lambda: 0.0, calendar=lambda: NOW_S)


async def arrives(ledger: UsageLedger, of: ApiKey, headers: Told) -> Account:
    account = ledger.open(of, RequestOutcome(endpoint="chat", request_id="r", model="tiny"), headers)
    try:
        await account.reserve("tiny", 10, lambda: 90)
    except RouterError:
        account.close()
        raise
    return account


async def test_a_ledger_tells_what_all_routers_have_left_and_takes_back_what_they_refuse(redis: RedisServer) -> None:
    limited = key(requests_per_minute=2, tokens_per_minute=1000)
    async with routers(redis, 2) as several:
        ours, theirs = map(ledger_with, several)
        headers: Told = []
        await arrives(theirs, limited, [])
        first = await arrives(ours, limited, headers)
        assert dict(headers)[b"x-ratelimit-remaining-requests"] == b"0"
        assert dict(headers)[b"x-ratelimit-remaining-tokens"] == b"800"
        with pytest.raises(RateLimited):
            await arrives(ours, limited, headers)
        assert dict(headers)[b"x-ratelimit-remaining-requests"] == b"0", "a refusal tells too"
        assert [int(bucket.left) for bucket in (ours._limits._requests["key-1"], ours._limits._tokens["key-1"])] == [1, 900]
        first.close()
        assert int(ours._limits._tokens["key-1"].left) == 1000


async def test_a_request_that_is_reserved_anew_is_one_request(redis: RedisServer) -> None:
    limited = key(requests_per_minute=1, tokens_per_minute=100, monthly_tokens=100)
    async with routers(redis, 1) as several:
        (ledger,) = map(ledger_with, several)
        account = await arrives(ledger, limited, [])
        account.release()  # its model does not answer, another one does
        await several[0].flush()
        await account.reserve("spare", 10, lambda: 90)
        account.close()
        with pytest.raises(RateLimited):
            await arrives(ledger, limited, [])


async def test_closing_settles_what_came_after_a_batch_that_was_not_confirmed(redis: RedisServer) -> None:
    limited = key(tokens_per_minute=1000)
    async with routers(redis, 2) as (ours, theirs):
        first, second = [(await ours.reserve(limited, MONTH, 500, NOTHING, NOTHING)).lease for _ in range(2)]
        ours.settle(limited, MONTH, 500, first, NOTHING)
        ours._leaving = ours._next_batch()  # as one whose answer was lost
        ours.settle(limited, MONTH, 500, second, NOTHING)
        await ours.close()
        assert await refusal_of(theirs, limited, 1000) is None


async def test_without_redis_each_router_goes_by_its_own_limits_and_shares_again_when_it_is_back(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    limited = key(requests_per_minute=1)
    async with routers(redis, 2) as several:
        ours, theirs = map(ledger_with, several)
        redis.stop()
        await arrives(ours, limited, [])
        with pytest.raises(RateLimited):
            await arrives(ours, limited, [])
        await arrives(theirs, limited, [])
        with pytest.raises(SharedLimitsAway):
            await several[0].reserve(limited, MONTH, 0, NOTHING, NOTHING)
        redis.start()
        for each in several:
            each.record(limited, MONTH, Amount(1), None, NOTHING)
            await each.flush()
        assert await refusal_of(several[0], limited) is None
        assert isinstance(await refusal_of(several[1], limited), RateLimited)
    said = [record.message for record in caplog.records if record.name.startswith("pagoda_router.usage")]
    assert [line[:22] for line in said] == [
        "Redis does not answer;",
        "Redis does not answer;",
        "Redis answers again: l",
        "Redis answers again: l",
    ]
