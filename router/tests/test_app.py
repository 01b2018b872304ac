"""The listener: routes, keys, request ids, limits, and what happens when the client leaves or stops reading."""

import asyncio

import pytest
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat
from starlette.responses import PlainTextResponse
from tokenizers import Tokenizer

from pagoda_router.http.app import create_app
from pagoda_router.http.surface import Endpoint, RequestOutcome, SurfaceSettings
from pagoda_router.keys.keyring import Keyring


class Recorder:
    def __init__(self) -> None:
        self.started: list[Endpoint] = []
        self.outcomes: list[RequestOutcome] = []

    def request_started(self, endpoint: Endpoint) -> None:
        self.started.append(endpoint)

    def request_finished(self, outcome: RequestOutcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def guarded(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, recorder: Recorder) -> Caller:
    return Caller(
        create_app(
            dispatcher=dispatcher,
            catalog=catalog,
            keyring=Keyring("secret", None, calendar=lambda: 0.0),
            settings=SurfaceSettings(max_body_bytes=1000, stalled_reader_s=0.05, body_timeout_s=0.05),
            observer=recorder,
            open_routes={"/health": PlainTextResponse("ok")},
            guarded_routes={"/metrics": PlainTextResponse("counters")},
        )
    )


KEY = {"authorization": "Bearer secret"}

ROUTES = [
    # method, path, headers, status, code
    ("GET", "/health", {}, 200, None),
    ("GET", "/metrics", {}, 401, "missing_api_key"),
    ("GET", "/metrics", KEY, 200, None),
    ("GET", "/", {}, 200, None),
    ("HEAD", "/", {}, 200, None),
    ("POST", "/", {}, 405, "method_not_allowed"),
    ("GET", "/v1/models", {}, 401, "missing_api_key"),
    ("GET", "/v1/models", {"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
    ("GET", "/v1/models", {"authorization": "Basic secret"}, 401, "invalid_api_key"),
    ("GET", "/v1/models", {"authorization": "secret"}, 401, "invalid_api_key"),
    ("GET", "/v1/models", {"authorization": "bearer  secret"}, 200, None),
    ("GET", "/v1/models", KEY, 200, None),
    ("HEAD", "/v1/models", KEY, 200, None),
    ("HEAD", "/v1/models", {}, 401, "missing_api_key"),
    ("GET", "/v1/models/tiny", KEY, 200, None),
    ("GET", "/v1/models/org/asleep", KEY, 200, None),
    ("GET", "/v1/models/nobody", KEY, 404, "model_not_found"),
    ("POST", "/v1/models", KEY, 405, "method_not_allowed"),
    ("GET", "/v1/chat/completions", {}, 401, "missing_api_key"),
    ("GET", "/v1/chat/completions", KEY, 405, "method_not_allowed"),
    ("OPTIONS", "/v1/completions", KEY, 405, "method_not_allowed"),
    ("POST", "/v1/embeddings", {}, 401, "missing_api_key"),
    ("GET", "/v1/embeddings", KEY, 405, "method_not_allowed"),
    ("POST", "/v1/rerank", {}, 401, "missing_api_key"),
    ("POST", "/v1/rerank", KEY, 404, "not_found"),
    ("POST", "/tokenize", {}, 401, "missing_api_key"),
    ("GET", "/detokenize", KEY, 405, "method_not_allowed"),
    ("GET", "/tokenizer_info", {}, 401, "missing_api_key"),
    ("POST", "/tokenizer_info", KEY, 405, "method_not_allowed"),
    ("GET", "/v1", KEY, 404, "not_found"),
    ("GET", "/admin/v1/keys", {}, 401, "missing_api_key"),
    ("GET", "/admin/v1/keys", KEY, 200, None),
    ("HEAD", "/admin/v1/keys", KEY, 200, None),
    ("HEAD", "/admin/v1/usage", {}, 401, "missing_api_key"),
    ("HEAD", "/v1/completions", KEY, 405, "method_not_allowed"),
    ("HEAD", "/tokenize", KEY, 405, "method_not_allowed"),
    ("PUT", "/admin/v1/keys", KEY, 405, "method_not_allowed"),
    ("GET", "/admin/v1/keys/key-1", KEY, 405, "method_not_allowed"),
    ("DELETE", "/admin/v1/keys/key-1", KEY, 503, "keys_unavailable"),
    ("GET", "/console/../app.py", {}, 404, "not_found"),
    ("GET", "/nothing", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), ROUTES)
async def test_each_path_answers_whom_it_should(
    guarded: Caller, method: str, path: str, headers: dict[str, str], status: int, code: str | None
) -> None:
    await guarded(method, path, headers=headers)
    assert guarded.status == status
    assert guarded.headers["x-request-id"].startswith("req-")
    if code is not None:
        assert guarded.headers["content-type"] == "application/json"
        assert guarded.error["code"] == code
        assert set(guarded.error) == {"message", "type", "param", "code"}
    if status == 405:
        assert guarded.headers["allow"]


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("with space", False), ("ümlaut", False), ("", False)]
)
async def test_a_sane_request_id_of_the_client_comes_back(call: Caller, given: str, kept: bool) -> None:
    await call("GET", "/v1/models", headers={"x-request-id": given})
    assert (call.headers["x-request-id"] == given) is kept


async def test_models_are_listed_with_their_readiness(call: Caller) -> None:
    cards = (await call("GET", "/v1/models")).json["data"]
    assert [card["id"] for card in cards] == ["tiny", "org/asleep"]
    assert cards[0]["max_model_len"] == 512
    variants = [{"name": "default", "backend": "pagoda", "quantization": "none"}]
    assert cards[1]["pagoda"] == {"ready": False, "state": "asleep", "reason": "no worker yet", "variants": variants}
    assert {"object": "model", "owned_by": "pagoda"}.items() <= cards[0].items()


BIG = b'{"model":"' + b"x" * 2000


@pytest.mark.parametrize(
    ("body", "headers"),
    [(BIG, {"content-length": str(len(BIG))}), (BIG, {}), ([b"x" * 400] * 1000, {})],
    ids=["announced", "silent", "chunked"],
)
async def test_a_body_over_the_limit_is_not_read_to_its_end(guarded: Caller, body: object, headers: dict[str, str]) -> None:
    await guarded("POST", "/v1/completions", body, headers={**KEY, **headers})
    assert (guarded.status, guarded.error["code"]) == (413, "body_too_large")
    assert guarded.headers["connection"] == "close"
    assert "1000" in guarded.error["message"]


async def test_a_body_that_never_ends_times_out(guarded: Caller) -> None:
    never = asyncio.Event()
    sent = []

    async def receive() -> dict[str, object]:
        await never.wait()
        raise AssertionError

    async def send(message: object) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [(b"authorization", b"Bearer secret")]}
    await guarded.app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 408  # type: ignore[index]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST:8000", "tiny.localhost:8000", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7"]
)
async def test_without_a_key_local_names_are_answered(call: Caller, host: str) -> None:
    await call("GET", "/v1/models", headers={"host": host})
    assert call.status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "]:["])
@pytest.mark.parametrize("path", ["/v1/models", "/", "/health"])
async def test_without_a_key_a_web_page_s_name_is_refused(call: Caller, host: str, path: str) -> None:
    await call("GET", path, headers={"host": host})
    assert call.status == 403


async def test_with_a_key_any_name_is_answered(guarded: Caller) -> None:
    await guarded("GET", "/v1/models", headers={"host": "models.example", **KEY})
    assert guarded.status == 200


async def test_a_form_from_another_site_is_refused(call: Caller) -> None:
    await call("POST", "/v1/chat/completions", chat(), headers={"content-type": "text/plain"})
    assert call.status == 400
    assert "application/json" in call.error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_queued_frees_its_place(
    guarded: Caller, dispatcher: ScriptedDispatcher, recorder: Recorder, stream: bool
) -> None:
    dispatcher.script = Script(queued=asyncio.Event())
    request = asyncio.create_task(guarded("POST", "/v1/chat/completions", chat(stream=stream), headers=KEY))
    await dispatcher.entered.wait()
    guarded.left.set()
    await request
    assert dispatcher.running == 0
    assert guarded.sent == []
    assert recorder.outcomes[0].status == 499


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_mid_answer_cancels_it(
    guarded: Caller, dispatcher: ScriptedDispatcher, recorder: Recorder, stream: bool, n: int
) -> None:
    dispatcher.script = Script(batches=[[70], [71]], pause_before={1: asyncio.Event()})
    request = asyncio.create_task(guarded("POST", "/v1/chat/completions", chat(stream=stream, n=n), headers=KEY))
    await (guarded.got if stream else dispatcher.entered).wait()
    guarded.left.set()
    await request
    assert dispatcher.running == 0
    assert recorder.outcomes[0].status == 499
    assert b"[DONE]" not in guarded.body


async def test_a_client_that_leaves_cancels_all_prompts_of_a_batch(guarded: Caller, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(batches=[[70], [71]], pause_before={1: asyncio.Event()})
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "stream": True}
    request = asyncio.create_task(guarded("POST", "/v1/completions", body, headers=KEY))
    await guarded.got.wait()
    guarded.left.set()
    await request
    assert dispatcher.running == 0


async def test_a_reader_that_stops_reading_is_cut_off(guarded: Caller, dispatcher: ScriptedDispatcher, recorder: Recorder) -> None:
    dispatcher.script = Script(batches=[[70]] * 100)
    guarded.reads.clear()
    await asyncio.wait_for(guarded("POST", "/v1/chat/completions", chat(stream=True), headers=KEY), 10)
    assert dispatcher.running == 0
    assert recorder.outcomes[0].status == 499


async def test_a_slow_but_moving_stream_is_not_cut_off(guarded: Caller, dispatcher: ScriptedDispatcher) -> None:
    resume = asyncio.Event()
    dispatcher.script = Script(batches=[[70], [71]], pause_before={1: resume})
    request = asyncio.create_task(guarded("POST", "/v1/chat/completions", chat(stream=True), headers=KEY))
    await guarded.got.wait()
    # Three times the stalled reader's limit without a token: the worker is slow, not the reader.
    asyncio.get_running_loop().call_later(0.15, resume.set)
    await request
    assert guarded.events[-1] == "[DONE]"


async def test_cancelling_the_server_task_is_not_taken_for_a_leaving_client(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(queued=asyncio.Event())
    request = asyncio.create_task(call("POST", "/v1/chat/completions", chat()))
    await dispatcher.entered.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert dispatcher.running == 0


async def test_a_server_that_cancels_as_the_client_leaves_is_obeyed(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(queued=asyncio.Event())
    request = asyncio.create_task(call("POST", "/v1/chat/completions", chat()))
    await dispatcher.entered.wait()
    # Both in one turn of the loop: the watcher sees the client leave after the server has cancelled, before the task runs.
    call.left.set()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert dispatcher.running == 0


async def test_the_observer_hears_of_each_request_once(
    guarded: Caller, dispatcher: ScriptedDispatcher, recorder: Recorder, tokenizer: Tokenizer
) -> None:
    dispatcher.script = Script(batches=[[i] for i in tokenizer.encode("hello world").ids], cached_tokens=2)
    await guarded("POST", "/v1/chat/completions", chat(stream=True, n=2), headers={**KEY, "x-request-id": "mine"})
    assert recorder.started == ["chat"]
    (outcome,) = recorder.outcomes
    assert (outcome.request_id, outcome.model, outcome.served_name) == ("mine", "tiny-object", "tiny")
    assert (outcome.stream, outcome.status) == (True, 200)
    assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.completion_tokens) == (5, 2, 4)
    assert outcome.finish_reasons == ("stop", "stop")
    assert outcome.ttft_s is not None
    assert 0 < outcome.ttft_s <= outcome.duration_s


async def test_a_refused_request_is_observed_without_a_model_label(guarded: Caller, recorder: Recorder) -> None:
    await guarded("POST", "/v1/chat/completions", chat(model="no such"), headers=KEY)
    assert (recorder.outcomes[0].status, recorder.outcomes[0].error_code, recorder.outcomes[0].model) == (404, "model_not_found", None)


async def test_our_own_fault_is_a_500_that_tells_nothing(
    call: Caller, dispatcher: ScriptedDispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_generation: object) -> Script:
        raise KeyError("the secret inside")

    dispatcher.script_of = broken
    await call("POST", "/v1/chat/completions", chat())
    assert (call.status, call.error["code"]) == (500, "internal_error")
    assert b"secret inside" not in call.body
    assert "the secret inside" in caplog.text


async def test_lifespan_is_acknowledged(call: Caller) -> None:
    messages = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": next(messages)}

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    await call.app({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
