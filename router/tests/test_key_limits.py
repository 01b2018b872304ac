"""Requests a minute of a key, as a pure bucket and as clients see it."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat

from pagoda_router.errors import RateLimited
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring
from pagoda_router.keys.limits import RequestLimits, told
from pagoda_router.keys.store import KeyStore


def key(limit: int | None) -> ApiKey:
    return ApiKey(id="key-1", prefix="pgd-abc", name="n", tenant="t", requests_per_minute=limit)


def refused_for_s(limits: RequestLimits, limit: int, now_s: float) -> float:
    try:
        limits.take(key(limit), now_s)
    except RateLimited as error:
        return error.retry_after_s or 0.0
    return 0.0


@given(limit=st.integers(1, 20), gaps_s=st.lists(st.floats(0, 30), max_size=80))
def test_no_minute_has_more_than_two_limits_and_a_told_wait_is_enough(limit: int, gaps_s: list[float]) -> None:
    limits, now_s, let_through = RequestLimits(), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        if (wait_s := refused_for_s(limits, limit, now_s)) > 0:
            assert wait_s <= 60 / limit
            now_s += wait_s + 1e-6
            assert refused_for_s(limits, limit, now_s) == 0
        let_through.append(now_s)
    # a full bucket, and what flows into it within the minute
    assert all(sum(start <= at_s < start + 60 for at_s in let_through) <= 2 * limit for start in let_through)


def test_a_key_without_a_limit_is_told_nothing() -> None:
    assert RequestLimits().take(key(None), 0.0) == []


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")])
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert told(seconds) == text


async def test_a_key_over_its_limit_is_told_when_to_come_back(
    dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dispatcher.script = Script(batches=[[72]])
    keyring = Keyring("root", KeyStore(tmp_path_factory.mktemp("keys") / "k"), calendar=time.time)
    secret, _ = await keyring.create(key(1))
    app = create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), keyring=keyring)
    headers = {"authorization": f"Bearer {secret}"}
    first = await Caller(app)("POST", "/v1/chat/completions", chat(), headers=headers)
    told_of = {name.removeprefix("x-ratelimit-"): value for name, value in first.headers.items() if name.startswith("x-ratelimit-")}
    assert (first.status, told_of) == (200, {"limit-requests": "1", "remaining-requests": "0", "reset-requests": "1m0s"})
    second = await Caller(app)("POST", "/v1/chat/completions", chat(), headers=headers)
    assert (second.status, second.error["code"], second.headers["x-should-retry"]) == (429, "rate_limit_exceeded", "true")
    assert 0 < int(second.headers["retry-after"]) <= 60
    assert len(dispatcher.generations) == 1
