"""Requests and tokens a minute of a key, as pure buckets and as clients see them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat

from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.errors import LargerThanLimit, RateLimited
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring
from pagoda_router.keys.limits import RateLimits, told
from pagoda_router.keys.store import KeyStore


def key(requests: int | None = None, tokens: int | None = None) -> ApiKey:
    return ApiKey(id="key-1", prefix="pgd-abc", name="n", tenant="t", requests_per_minute=requests, tokens_per_minute=tokens)


def refused_for_s(limits: RateLimits, limit: int, now_s: float) -> float:
    try:
        limits.arrive(key(limit), now_s)
    except RateLimited as error:
        return error.retry_after_s or 0.0
    return 0.0


@given(limit=st.integers(1, 20), gaps_s=st.lists(st.floats(0, 30), max_size=80))
def test_no_minute_has_more_than_two_limits_and_a_told_wait_is_enough(limit: int, gaps_s: list[float]) -> None:
    limits, now_s, let_through = RateLimits(), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s
        if (wait_s := refused_for_s(limits, limit, now_s)) > 0:
            assert wait_s <= 60 / limit
            now_s += wait_s + 1e-6
            assert refused_for_s(limits, limit, now_s) == 0
        let_through.append(now_s)
    # a full bucket, and what flows into it within the minute
    assert all(sum(start <= at_s < start + 60 for at_s in let_through) <= 2 * limit for start in let_through)


REQUESTS = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 150), st.integers(1, 150), st.integers(0, 400)), max_size=60)


@given(requests=REQUESTS)
def test_tokens_that_were_let_through_never_outrun_the_limit_whatever_was_predicted(
    requests: list[tuple[float, int, int, int]],
) -> None:
    """Settled at once, so that the bucket's debt and its cap are all there is: used ≤ a full bucket, the time's share, one overrun."""
    limits, limited, now_s, used = RateLimits(), key(tokens=200), 0.0, 0
    for gap_s, prompt, predicted, output in requests:
        now_s += gap_s
        try:
            reserved = limits.reserve(limited, prompt, predicted, now_s)
        except RateLimited:
            continue
        limits.settle(limited, reserved, prompt + output, now_s)
        used += prompt + output
        assert used <= 200 + now_s * 200 / 60 + 150 + 400


def test_tokens_that_were_not_used_come_back_and_those_beyond_are_owed() -> None:
    limits, limited = RateLimits(), key(tokens=600)
    assert limits.reserve(limited, 100, 400, 0.0) == 500
    limits.settle(limited, 500, 120, 0.0)
    assert dict(limits.told(limited, 0.0))[b"x-ratelimit-remaining-tokens"] == b"480"
    limits.settle(limited, 0, 600, 0.0)
    assert dict(limits.told(limited, 0.0))[b"x-ratelimit-remaining-tokens"] == b"0"
    assert dict(limits.told(limited, 0.0))[b"x-ratelimit-reset-tokens"] == b"1m12s"
    with pytest.raises(RateLimited) as refused:
        limits.reserve(limited, 20, 60, 0.0)
    assert refused.value.retry_after_s == pytest.approx(20.0)


def test_a_prediction_larger_than_the_limit_takes_all_of_it_and_such_a_prompt_never_fits() -> None:
    limits, limited = RateLimits(), key(tokens=100)
    assert limits.reserve(limited, 10, 5000, 0.0) == 100
    with pytest.raises(LargerThanLimit) as refused:
        limits.reserve(limited, 100, 1, 0.0)
    assert not refused.value.worth_a_retry


def test_a_limit_that_is_changed_changes_what_is_left_by_as_much() -> None:
    limits = RateLimits()
    limits.reserve(key(tokens=100), 50, 40, 0.0)
    assert dict(limits.told(key(tokens=1000), 0.0))[b"x-ratelimit-remaining-tokens"] == b"910"


def test_a_key_without_a_limit_is_told_nothing() -> None:
    assert RateLimits().told(key(), 0.0) == []


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")])
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert told(seconds) == text.encode()


@pytest.fixture
def ask(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, tmp_path: Path) -> Callable[..., Any]:
    dispatcher.script = Script(batches=[[72]])
    keyring = Keyring("root", KeyStore(SqliteDatabase(tmp_path / "k")), calendar=time.time)
    app = create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), keyring=keyring)
    secrets: dict[ApiKey, str] = {}

    async def ask(of: ApiKey, **fields: object) -> Caller:
        if of not in secrets:
            secrets[of], _ = await keyring.create(of)
        return await Caller(app)("POST", "/v1/chat/completions", chat(**fields), headers={"authorization": f"Bearer {secrets[of]}"})

    return ask


def limits_told(caller: Caller) -> dict[str, str]:
    return {name.removeprefix("x-ratelimit-"): value for name, value in caller.headers.items() if name.startswith("x-ratelimit-")}


async def test_a_key_over_its_limit_is_told_when_to_come_back(ask: Callable[..., Any], dispatcher: ScriptedDispatcher) -> None:
    first = await ask(key(1))
    assert (first.status, limits_told(first)) == (200, {"limit-requests": "1", "remaining-requests": "0", "reset-requests": "1m0s"})
    second = await ask(key(1))
    assert (second.status, second.error["code"], second.headers["x-should-retry"]) == (429, "rate_limit_exceeded", "true")
    assert limits_told(second)["remaining-requests"] == "0"
    assert 0 < int(second.headers["retry-after"]) <= 60
    assert len(dispatcher.generations) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_answers_and_refusals_tell_tokens_as_they_tell_requests(ask: Callable[..., Any], stream: bool) -> None:
    limited = key(100, 400)
    first = await ask(limited, max_tokens=300, stream=stream)
    prompt = int(limits_told(first)["remaining-tokens"])
    assert first.status == 200
    assert 0 < prompt < 100, "of 400 a prompt and 300 to come are reserved when the headers leave"
    second = await ask(limited, max_tokens=390, stream=stream)
    assert (second.status, second.error["code"], second.headers["x-should-retry"]) == (429, "rate_limit_exceeded", "true")
    assert int(limits_told(second)["remaining-tokens"]) > 300, "what was not used has come back"
    assert limits_told(second)["remaining-requests"] == "98"
    third = await ask(limited, messages=[{"role": "user", "content": "a" * 450}])
    assert (third.status, third.headers["x-should-retry"]) == (429, "false")
    assert "shorten the prompt" in third.error["message"]
