"""The error tree as OpenAI's clients see it."""

import asyncio

import pytest
from scripted import Caller, Script, ScriptedDispatcher, chat

from pagoda_router.errors import (
    DeadlineInfeasible,
    LargerThanLimit,
    ModelNotFound,
    ModelUnavailable,
    NoWorker,
    Overloaded,
    QuotaSpent,
    RouterError,
    UpstreamFailed,
)
from pagoda_router.generation import EndReason

REFUSALS = [
    # raised on admission, status, headers
    (
        Overloaded("full", retry_after_s=2.3),
        429,
        {"retry-after": "3", "retry-after-ms": "2300", "x-should-retry": "true", "x-pagoda-refused": "overloaded"},
    ),
    (Overloaded("full", retry_after_s=0.02), 429, {"retry-after": "1", "retry-after-ms": "20"}),
    (Overloaded("full"), 429, {"retry-after": "1", "retry-after-ms": "1000"}),
    (Overloaded("full", retry_after_s=3600.0), 429, {"retry-after": "60", "retry-after-ms": "60000"}),
    (NoWorker("nobody", retry_after_s=5.0), 503, {"retry-after": "5", "x-should-retry": "true"}),
    (UpstreamFailed("lost"), 502, {}),
    (ModelNotFound("gone"), 404, {}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("refusal", "status", "headers"), REFUSALS, ids=str)
async def test_a_refused_admission_is_a_status_even_for_a_stream(
    call: Caller, dispatcher: ScriptedDispatcher, refusal: RouterError, status: int, headers: dict[str, str], stream: bool
) -> None:
    dispatcher.script = Script(refusal=refusal)
    await call("POST", "/v1/chat/completions", chat(stream=stream))
    assert call.status == status
    assert headers.items() <= call.headers.items()
    assert call.error["message"] == refusal.message


IN_VAIN = [
    QuotaSpent("the key has used its 1000 tokens"),
    LargerThanLimit("the prompt has 900 tokens, and the key may use 100 a minute"),
    ModelUnavailable("no worker of tiny can come: ImagePull: not found"),
]


@pytest.mark.parametrize("refusal", IN_VAIN, ids=lambda refusal: type(refusal).__name__)
async def test_what_no_wait_heals_names_no_time_to_come_back(call: Caller, dispatcher: ScriptedDispatcher, refusal: RouterError) -> None:
    dispatcher.script = Script(refusal=refusal)
    await call("POST", "/v1/chat/completions", chat())
    assert call.headers["x-should-retry"] == "false"
    assert not {"retry-after", "retry-after-ms"} & call.headers.keys()


async def test_an_impossible_deadline_says_when_a_new_request_may_make_it(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(refusal=DeadlineInfeasible("too late", retry_after_s=4.0))
    await call("POST", "/v1/chat/completions", chat())
    assert (call.headers["x-should-retry"], call.headers["retry-after"]) == ("false", "4")


ENDINGS = [
    # reason, status, code
    (EndReason.ENGINE_ERROR, 502, "worker_lost"),
    (EndReason.CANCELLED, 502, "worker_lost"),
    (EndReason.DEADLINE, 504, "deadline_exceeded"),
    (EndReason.SHUTDOWN, 503, "no_worker"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("reason", "status", "code"), ENDINGS)
async def test_a_failure_before_the_first_token_is_a_status(
    call: Caller, dispatcher: ScriptedDispatcher, reason: EndReason, status: int, code: str, stream: bool
) -> None:
    dispatcher.script = Script(reason=reason, detail="the engine died: try again")
    await call("POST", "/v1/chat/completions", chat(stream=stream))
    assert (call.status, call.error["code"]) == (status, code)
    assert call.error["message"] == "the engine died: try again"


@pytest.mark.parametrize(("reason", "status", "code"), ENDINGS)
async def test_a_failure_mid_stream_is_the_streams_last_event(
    call: Caller, dispatcher: ScriptedDispatcher, reason: EndReason, status: int, code: str
) -> None:
    dispatcher.script = Script(batches=[[70]], reason=reason)
    await call("POST", "/v1/chat/completions", chat(stream=True))
    assert call.status == 200
    assert call.events[-1]["error"]["code"] == code
    assert "[DONE]" not in call.events
    assert call.sent[-1]["more_body"] is False


@pytest.mark.parametrize("body", [chat(stream=True), {"model": "tiny", "prompt": ["a", "b"], "stream": True}], ids=["chat", "batch"])
@pytest.mark.parametrize("batches", [[], [[70]]], ids=["at once", "mid-stream"])
async def test_a_stream_that_just_ends_is_an_error_not_an_answer(
    call: Caller, dispatcher: ScriptedDispatcher, batches: list[list[int]], body: dict[str, object]
) -> None:
    dispatcher.script = Script(batches=batches, ends=False)
    await call("POST", "/v1/completions" if "prompt" in body else "/v1/chat/completions", body)
    error = call.events[-1]["error"] if batches else call.error
    assert error["code"] == "worker_lost"


async def test_one_refused_prompt_of_a_batch_refuses_the_request(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    never = asyncio.Event()
    dispatcher.script_of = lambda g: Script(refusal=Overloaded("full")) if g.request_id.endswith("-1") else Script(queued=never)
    await call("POST", "/v1/completions", {"model": "tiny", "prompt": ["a", "b", "c"]})
    assert call.status == 429
    assert dispatcher.running == 0
