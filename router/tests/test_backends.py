"""Requests on foreign backends, through the whole router: recorded exchanges of vLLM, TGI and TensorRT-LLM over real HTTP."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import recorded
from foreign_rig import QUICK, ForeignRig, offered_by, rig
from foreign_server import Answer, ForeignServer, json_answer, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import chat
from scripted_worker import ScriptedWorker

from pagoda_router.backends.http1 import Connections
from pagoda_router.backends.openai_http import HttpTiming
from pagoda_router.backends.vllm import Vllm
from pagoda_router.dispatch.stalls import StageTimeouts
from pagoda_router.errors import UpstreamFailed
from pagoda_router.generation import ModelName
from pagoda_router.openai.relayed_prompt import MEDIA_TOKENS, pieces_of
from pagoda_router.openai.responses.relayed import RelayedResponse
from pagoda_router.openai.responses.request import ResponsesRequest
from pagoda_router.tracing.document import document

BACKENDS = ("vllm", "tgi", "tensorrt-llm")


def asks(**fields: object) -> dict[str, object]:
    return chat(model="chat", **fields)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_stream_is_relayed_under_the_served_name_without_usage_nobody_asked_for(tmp_path, backend):
    async with recorded.server(backend) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True, temperature=0))
        asked = await server.next_request()
        assert (asked.json["stream_options"]["include_usage"], asked.json["temperature"]) == (True, 0)
        assert asked.json["model"] == ("org/upstream" if backend == "tgi" else "upstream")
        *chunks, done = call.events
        assert (call.status, done) == (200, "[DONE]")
        assert {chunk["model"] for chunk in chunks} == {"chat"}
        assert all(chunk["choices"] for chunk in chunks)
        assert call.headers["content-type"].startswith("text/event-stream")
        await router.until_nothing_is_held()
        (outcome,) = router.recorder.outcomes
        assert (outcome.status, outcome.model, outcome.prompt_tokens) == (200, "chat", 9)
        assert outcome.completion_tokens == (2 if backend == "tgi" else 3)
        assert outcome.finish_reasons == (("length",) if backend == "tgi" else ("stop",))
        assert outcome.ttft_s is not None


async def test_a_client_that_asks_for_usage_gets_the_servers(tmp_path):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True, stream_options={"include_usage": True}))
        *_, usage, _ = call.events
        assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], 9)
        assert router.recorder.outcomes[0].cached_tokens == 4


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_whole_answer_is_relayed_and_billed(tmp_path, backend):
    async with recorded.server(backend, json_answer(recorded.VLLM_WHOLE)) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(max_tokens=2))
        assert call.json == recorded.VLLM_WHOLE | {"model": "chat"}
        assert call.headers["content-length"] == str(len(call.body))
        await router.until_nothing_is_held()
        (outcome,) = router.recorder.outcomes
        assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.finish_reasons) == (9, 2, ("length",))
        assert router.metric("settled_kv_tokens_total", model="chat") == 16


@pytest.mark.parametrize("streams", [True, False])
async def test_an_answer_in_one_piece_tells_no_time_to_its_first_token(tmp_path, streams):
    answer = stream(*recorded.VLLM_STREAM) if streams else json_answer(recorded.VLLM_WHOLE)
    async with recorded.server("vllm", answer) as server, rig(tmp_path, server) as router:
        await router.caller()("POST", "/v1/chat/completions", asks(stream=streams))
        (outcome,) = router.recorder.outcomes
        assert (outcome.ttft_s is not None) == (outcome.last_token_s is not None) == streams
        told = router.dispatcher.demand(ModelName("chat")).ttft_s(router.dispatcher.now_s())
        assert (told is not None) == streams, "the autoscaler's figure"


PROMPTS = [("a", 1), (["a", "b", "c"], 3), ([1, 2], 1), ([[1, 2], [3]], 2), ([], 1), ({"no": "prompt"}, 1)]


@pytest.mark.parametrize(("prompt", "count"), PROMPTS)
async def test_each_prompt_of_a_list_is_priced(tmp_path, prompt, count):
    async with recorded.server("vllm", json_answer(recorded.VLLM_WHOLE)) as server, rig(tmp_path, server) as router:
        await router.caller()("POST", "/v1/completions", {"model": "chat", "prompt": prompt, "n": 2, "max_tokens": 100, "ignore_eos": True})
        await router.until_nothing_is_held()
        assert router.metric("predicted_output_tokens_total", model="chat") == 200 * count


def pictures(*bodies: bytes) -> dict[str, object]:
    urls = [f"data:image/png;base64,{base64.b64encode(body).decode()}" for body in bodies]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return asks(messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}], max_tokens=4)


async def test_a_picture_is_priced_as_a_picture_and_not_as_the_text_that_carries_it(tmp_path):
    async with recorded.server("vllm", json_answer(recorded.VLLM_WHOLE)) as server, rig(tmp_path, server) as router:
        asked = pictures(bytes(range(256)) * 2000, b"x" * 100_000)
        call = await router.caller()("POST", "/v1/chat/completions", asked)
        assert call.status == 200
        assert (await server.next_request()).json["messages"] == asked["messages"], "it goes on whole"
        await router.until_nothing_is_held()
        assert 2 * MEDIA_TOKENS < router.metric("reserved_kv_tokens_total", model="chat") < 2 * MEDIA_TOKENS + 200


def test_the_same_picture_is_the_same_prompt_and_another_one_is_another():
    one, same, other = (pieces_of(msgspec.json.encode(pictures(body)["messages"])) for body in (b"a" * 9000, b"a" * 9000, b"b" * 9000))
    assert one == same
    assert len(one) == len(other)
    assert one != other
    text = msgspec.json.encode("base64, is what " + "a" * 100)
    assert pieces_of(text).tobytes().rstrip(b"\0") == text


async def test_fields_that_this_router_does_not_know_are_the_backends_business(tmp_path):
    async with recorded.server("vllm", json_answer(recorded.VLLM_WHOLE)) as server, rig(tmp_path, server) as router:
        call = await router.caller()(
            "POST", "/v1/completions", {"model": "chat", "prompt": [1, 2], "vllm_xargs": {"a": 1}, "use_beam_search": True}
        )
        asked = await server.next_request()
        assert (call.status, asked.path) == (200, "/v1/completions")
        assert {"prompt": [1, 2], "vllm_xargs": {"a": 1}, "use_beam_search": True}.items() <= asked.json.items()


ERRORS = [
    # server, status, body, the client's status and code, words
    ("vllm", 400, recorded.VLLM_TOO_LONG, 400, "context_length_exceeded", "maximum context length"),
    ("tgi", 422, recorded.TGI_TOO_LONG, 400, "context_length_exceeded", "must be <= 2048"),
    ("tgi", 429, recorded.TGI_OVERLOADED, 429, "overloaded", "Model is overloaded"),
    ("tgi", 424, recorded.TGI_FAILED, 502, "worker_lost", "CUDA out of memory"),
    ("tensorrt-llm", 400, recorded.TRT_BAD, 400, None, "Extra inputs are not permitted"),
    (
        "vllm",
        500,
        {"error": {"message": "EngineDeadError", "type": "x", "param": None, "code": 500}},
        502,
        "worker_lost",
        "EngineDeadError",
    ),
    ("vllm", 503, b"", 503, "no_worker", "503"),
]


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(("backend", "status", "body", "told_status", "code", "words"), ERRORS)
async def test_an_error_has_our_shape_and_never_another_error_inside(tmp_path, backend, status, body, told_status, code, words, streams):
    async with recorded.server(backend, json_answer(body, status)) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=streams))
        assert (call.status, call.error["code"]) == (told_status, code)
        assert words in call.error["message"]
        assert '"error"' not in call.error["message"]
        assert call.error.keys() == {"message", "type", "param", "code"}
        assert ("retry-after" in call.headers) == (told_status in (429, 503))
        await router.until_nothing_is_held()


TOLD_IN_A_STREAM = [
    ("Model is overloaded", 429, "overloaded"),
    ("Input validation error: `inputs` must have less than 1024 tokens. Given: 2000", 400, "context_length_exceeded"),
    ("Template error: unknown method", 400, None),
    ("Request failed during generation: Server error", 502, "worker_lost"),
]


@pytest.mark.parametrize(("message", "status", "code"), TOLD_IN_A_STREAM)
async def test_what_tgi_refuses_by_the_first_event_of_a_stream_has_the_status_that_it_means(tmp_path, message, status, code):
    async with recorded.server("tgi", stream(recorded.tgi_stream_error(message))) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
        assert (call.status, call.error["code"]) == (status, code)
        assert message in call.error["message"]
        await router.until_nothing_is_held()


@pytest.mark.parametrize(("backend", "event"), [("vllm", recorded.VLLM_STREAM_ERROR), ("tgi", recorded.TGI_STREAM_ERROR)])
async def test_an_error_in_a_stream_is_its_last_event_in_our_shape(tmp_path, backend, event):
    answer = stream(recorded.VLLM_ROLE, recorded.VLLM_TOKENS[0], event, recorded.DONE)
    async with recorded.server(backend, answer) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
        _, second, error = call.events
        assert second["choices"][0]["delta"]["content"] == "Hello"
        assert error["error"]["code"] == "worker_lost"
        assert error["error"]["type"] == "server_error"
        assert router.recorder.outcomes[0].completion_tokens == 2, "what was sent is billed"


async def test_a_stream_that_breaks_off_says_so(tmp_path):
    """As TensorRT-LLM does when its generator fails: it has no error event."""
    answer = stream(recorded.VLLM_ROLE, recorded.VLLM_TOKENS[0], breaks=True)
    async with recorded.server("tensorrt-llm", answer) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
        *_, error = call.events
        assert "was lost" in error["error"]["message"]
        await router.until_nothing_is_held()


async def test_a_stream_that_ends_without_done_is_not_called_complete(tmp_path):
    answer = stream(recorded.VLLM_ROLE, recorded.VLLM_LAST)
    async with recorded.server("vllm", answer) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
        assert "ended early" in call.events[-1]["error"]["message"]


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_worker_lost_before_its_first_byte_is_replaced(tmp_path, breaks):
    lost = recorded.server("vllm", stream(breaks=True) if breaks else json_answer(b"", 503), name="lost")
    async with lost, recorded.server("vllm", name="sound") as sound, rig(tmp_path, lost) as router:
        router.know(lost, sound, models=(offered_by("vllm"),))
        await router.until_routable(2, model="chat")
        while lost.asked.empty():  # between equals the draw decides
            call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
            assert call.events[-1] == "[DONE]"
        assert router.metric("retries_total", model="chat", reason="worker_lost" if breaks else "refused") >= 1


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_before_the_first_byte_cancels_upstream(tmp_path, streams):
    async with recorded.server("vllm", stream(asyncio.Event())) as server, rig(tmp_path, server) as router:
        call = router.caller()
        task = asyncio.create_task(call("POST", "/v1/chat/completions", asks(stream=streams)))
        await server.next_request()
        call.left.set()
        await task
        assert await server.next_hang_up() == "/v1/chat/completions"
        assert call.sent == []
        await router.until_nothing_is_held()
        assert router.recorder.outcomes[0].status == 499


async def test_a_client_that_leaves_a_stream_cancels_upstream_and_pays_for_what_it_got(tmp_path):
    answer = stream(recorded.VLLM_ROLE, recorded.VLLM_TOKENS[0], asyncio.Event())
    async with recorded.server("vllm", answer) as server, rig(tmp_path, server) as router:
        call = router.caller()
        task = asyncio.create_task(call("POST", "/v1/chat/completions", asks(stream=True)))
        while b"Hello" not in (call.body if call.sent else b""):
            call.got.clear()
            await call.got.wait()
        call.left.set()
        await task
        assert await server.next_hang_up() == "/v1/chat/completions"
        await router.until_nothing_is_held()
        assert router.recorder.outcomes[0].completion_tokens == 2


async def test_a_client_that_leaves_the_queue_never_reaches_the_backend(tmp_path):
    full = Answer(200, (recorded.VLLM_METRICS.replace(b"0.25", b"1.0"),), "text/plain")
    async with recorded.server("vllm") as server:
        server.answers["/metrics"] = full
        async with rig(tmp_path, server) as router:
            await router.until(lambda: router.link.available_tokens == 0)
            call = router.caller()
            task = asyncio.create_task(call("POST", "/v1/chat/completions", asks(stream=True)))
            await router.until(lambda: True)
            while router.dispatcher.queue(ModelName("chat"))[0] == 0:
                await asyncio.sleep(0)
            call.left.set()
            await task
            assert router.dispatcher.queue(ModelName("chat")) == (0, 0)
            assert server.asked.empty()


async def test_a_request_waits_while_the_backend_is_full_and_goes_when_it_is_not(tmp_path):
    async with recorded.server("vllm") as server:
        idle = server.answers["/metrics"]
        server.answers["/metrics"] = Answer(200, (recorded.VLLM_METRICS.replace(b"0.25", b"1.0"),), "text/plain")
        async with rig(tmp_path, server) as router:
            await router.until(lambda: router.link.available_tokens == 0)
            task = asyncio.create_task(router.caller()("POST", "/v1/chat/completions", asks(stream=True)))
            while router.dispatcher.queue(ModelName("chat"))[0] == 0:
                await asyncio.sleep(0)
            server.answers["/metrics"] = idle
            assert (await task).events[-1] == "[DONE]"


async def test_between_two_looks_the_routers_own_count_holds(tmp_path):
    """A look told of a quarter; what was sent since is added, what ended since is not held against it."""
    async with recorded.server("vllm", stream(asyncio.Event())) as server:
        server.answers["/metrics"] = Answer(200, (recorded.VLLM_METRICS,), "text/plain")
        ForeignRig.http_timing = HttpTiming(look_every_s=60)
        try:
            async with rig(tmp_path, server) as router:
                await router.until(lambda: router.link.available_tokens == 12288)
                call = router.caller()
                task = asyncio.create_task(call("POST", "/v1/chat/completions", asks(max_tokens=100)))
                await server.next_request()
                assert 12288 - 160 < router.link.available_tokens < 12288 - 96
                call.left.set()
                await task
                await router.until_nothing_is_held()
                assert router.link.available_tokens == 12288
        finally:
            ForeignRig.http_timing = QUICK


@pytest.mark.parametrize("streams", [True, False])
async def test_a_server_that_hangs_loses_its_requests_to_another_one(tmp_path, monkeypatch, streams):
    """Its connections stand and its health no longer answers, as with a stopped process or a node that is gone."""
    monkeypatch.setattr(ForeignRig, "http_timing", replace(QUICK, look_timeout_s=0.05, failed_looks=2))
    hangs = recorded.server("vllm", Answer(parts=[asyncio.Event()]), name="hangs")
    answers = recorded.server("vllm", stream(*recorded.VLLM_STREAM) if streams else json_answer(recorded.VLLM_WHOLE), name="answers")
    quickly = StageTimeouts(cut_off_s=0.1)
    async with hangs, answers, rig(tmp_path, hangs, timeouts=quickly) as router:
        request = asyncio.create_task(router.caller()("POST", "/v1/chat/completions", asks(stream=streams)))
        await hangs.next_request()
        router.know(hangs, answers, models=(offered_by("vllm"),))
        hangs.answers["/health"] = Answer(parts=[asyncio.Event()])
        call = await asyncio.wait_for(request, 10)
        assert call.status == 200
        assert (call.events[-1] == "[DONE]") if streams else (call.json["model"] == "chat")
        assert router.metric("retries_total", model="chat", reason="timed_out") == 1


async def test_a_server_that_ends_in_order_finishes_what_it_has(tmp_path):
    """It stops listening first."""
    goes_on = asyncio.Event()
    server = recorded.server("vllm", Answer(parts=[goes_on, msgspec.json.encode(recorded.VLLM_WHOLE)]))
    async with server, rig(tmp_path, server, timeouts=StageTimeouts(cut_off_s=0.1)) as router:
        request = asyncio.create_task(router.caller()("POST", "/v1/chat/completions", asks()))
        await server.next_request()
        server.stop_listening()
        await router.until(lambda: not router.link.routable)
        asyncio.get_running_loop().call_later(0.5, goes_on.set)
        assert (await asyncio.wait_for(request, 10)).status == 200


async def test_a_backend_that_says_nothing_for_too_long_is_given_up(tmp_path):
    ForeignRig.http_timing = HttpTiming(look_every_s=60, silence_s=0.05)
    try:
        async with recorded.server("vllm", stream(asyncio.Event())) as server, rig(tmp_path, server) as router:
            call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
            assert (call.status, call.error["code"]) == (502, "worker_lost")
            assert "said nothing for 0.05 s" in call.error["message"]
            assert await server.next_hang_up() == "/v1/chat/completions"
    finally:
        ForeignRig.http_timing = QUICK


async def test_a_server_without_metrics_is_used_by_the_routers_own_count(tmp_path):
    async with recorded.server("vllm") as server:
        del server.answers["/metrics"]
        async with rig(tmp_path, server) as router:
            assert (await router.caller()("POST", "/v1/chat/completions", asks(stream=True))).events[-1] == "[DONE]"


async def test_a_server_that_is_not_healthy_gets_nothing_and_is_taken_up_again(tmp_path):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        healthy, server.answers["/health"] = server.answers["/health"], Answer(503)
        await router.until(lambda: not router.link.view().routable)
        assert "/health answered 503" in router.fleet.why_not(ModelName("chat"))
        server.answers["/health"] = healthy
        await router.until_routable(1, model="chat")


async def test_a_server_that_asks_for_a_key_gets_no_requests_and_says_why(tmp_path):
    """Its health does not ask for one, so that it would look ready and refuse everything."""
    async with recorded.server("vllm") as server:
        server.answers["/v1/models"] = json_answer({"error": "Unauthorized"}, 401)
        router = ForeignRig(tmp_path)
        try:
            router.know(server, models=(offered_by("vllm"),))
            await router.until(lambda: "it asks for an API key" in router.link.view().reason)
            assert not router.link.routable
            server.answers["/v1/models"] = json_answer(recorded.VLLM_MODELS)
            await router.until_routable(1, model="chat")
        finally:
            await router.fleet.close()


async def test_a_slow_reader_holds_the_backend_back(tmp_path):
    lots = _fat_chunks(40)
    async with recorded.server("vllm", stream(*lots, recorded.DONE)) as server, rig(tmp_path, server) as router:
        call = router.caller()
        call.reads.clear()
        task = asyncio.create_task(call("POST", "/v1/chat/completions", asks(stream=True)))
        await server.next_request()
        await router.until(lambda: router.link.in_flight == 1)
        (stream_of_it,) = router.link._streams
        while not stream_of_it._unread.bytes:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert stream_of_it._unread.bytes < 1_000_000, "of four million"
        call.reads.set()
        await task
        assert call.events[-1] == "[DONE]"
        assert len(call.events) == 41


def _fat_chunks(count: int) -> list[bytes]:
    return [recorded.VLLM_TOKENS[0].replace(b"Hello", b"x" * 100_000) for _ in range(count)]


async def test_the_router_keeps_a_trace_whose_parts_add_up(tmp_path):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
        trace = router.ring.find(call.headers["x-request-id"])
        assert trace is not None
        assert trace.ended_s is not None
        told = document(trace, trace.ended_s)
        assert [phase["name"] for phase in told["phases"]] == ["receive", "prepare", "queue_wait", "upstream"]
        assert sum(phase["ms"] for phase in told["phases"]) == pytest.approx(told["total_ms"], abs=0.01)
        assert told["tokens"] == {"prompt": 9, "cached": 4, "output": 3}
        assert told["decision"]["worker"] == router.link.worker
        refused = await router.caller()("POST", "/v1/chat/completions", asks(), {"X-Pagoda-Trace": "1"})
        assert (refused.status, refused.error["param"]) == (400, "X-Pagoda-Trace")


# ---------------------------------------------------------------- which backend


async def test_the_header_picks_a_backend_among_those_that_the_model_offers(tmp_path):
    vllm, tgi = recorded.server("vllm", variant="vllm", name="v"), recorded.server("tgi", variant="tgi", name="t")
    async with vllm, tgi, rig(tmp_path, vllm, tgi, models=(offered_by("vllm", "tgi"),)) as router:
        for backend, server in (("vllm", vllm), ("tgi", tgi), ("vllm", vllm)):
            call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True), {"X-Backend": backend})
            assert call.events[-1] == "[DONE]"
            await server.next_request()
        assert vllm.asked.empty()
        assert tgi.asked.empty()
        call = await router.caller()("POST", "/v1/chat/completions", asks(), {"X-Backend": "tensorrt-llm"})
        assert (call.status, call.error["param"]) == (400, "X-Backend")
        assert "it is by: vllm, tgi" in call.error["message"]


async def test_a_model_of_two_backends_sends_tokens_to_the_one_and_text_to_the_other(tmp_path):
    own, vllm = ScriptedWorker("chat", variant="pagoda"), recorded.server("vllm", variant="vllm", name="v")
    async with own, vllm, rig(tmp_path, own, vllm, models=(offered_by("pagoda", "vllm"),)) as router:
        relayed = await router.caller()("POST", "/v1/chat/completions", asks(stream=True), {"X-Backend": "vllm"})
        assert relayed.events[-1] == "[DONE]"
        assert own.submits.empty()
        cards = (await router.caller()("GET", "/v1/models")).json["data"]
        offered = [
            {"name": "pagoda", "backend": "pagoda", "quantization": "none"},
            {"name": "vllm", "backend": "vllm", "quantization": None},
        ]
        assert cards[0]["pagoda"]["variants"] == offered


async def test_while_a_variant_changes_its_backend_text_goes_to_the_new_workers_only(tmp_path):
    old, new = ScriptedWorker("chat"), recorded.server("vllm", name="new")
    async with old, new, rig(tmp_path, old, new, models=(offered_by("vllm"),)) as router:
        for _ in range(8):
            call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
            assert call.events[-1] == "[DONE]"
        assert old.submits.empty()


async def test_a_models_length_is_the_one_that_its_server_tells(tmp_path):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        (card,) = (await router.caller()("GET", "/v1/models")).json["data"]
        assert card["max_model_len"] == 2048


@pytest.mark.parametrize(
    ("weights", "length"), [({"pagoda": 0, "vllm": 100}, 512), ({"pagoda": 50, "vllm": 50}, 64), ({"pagoda": 0, "vllm": 0}, 64)]
)
async def test_a_model_of_two_backends_takes_what_fits_those_that_get_its_requests(tmp_path, weights, length):
    models = json_answer({"data": [recorded.VLLM_MODELS["data"][0] | {"max_model_len": 512}]})
    own, vllm = ScriptedWorker("chat", variant="pagoda"), recorded.server("vllm", variant="vllm", name="v")
    vllm.answers["/v1/models"], own.max_model_len = models, 64
    offered = replace(offered_by("pagoda", "vllm"), variants=tuple(weights.items()))
    async with own, vllm, rig(tmp_path, own, vllm, models=(offered,)) as router:
        (card,) = (await router.caller()("GET", "/v1/models")).json["data"]
        assert card["max_model_len"] == length


async def test_a_prompt_that_no_cache_may_know_has_a_salt_of_its_own(tmp_path):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        salts = []
        for headers in ({}, {"X-Pagoda-Features": "prefix-cache=off"}, {"X-Pagoda-Features": "prefix-cache=off"}):
            await router.caller()("POST", "/v1/chat/completions", asks(stream=True), headers)
            salts.append((await server.next_request()).json.get("cache_salt"))
        assert salts[0] is None
        assert len({*salts}) == 3


BAD = [
    ({"model": "chat"}, "messages", "messages is required"),
    (asks(n=0), "n", "use a value from 1"),
    (asks(stream="yes"), "stream", "expected bool"),
    (b"{", None, "not valid JSON"),
]


@pytest.mark.parametrize(("body", "param", "words"), BAD)
async def test_what_is_wrong_for_any_backend_is_said_before_one_is_asked(tmp_path, body, param, words):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", body if isinstance(body, bytes) else msgspec.json.encode(body))
        assert (call.status, call.error["param"]) == (400, param)
        assert words in call.error["message"]
        assert server.asked.empty()


async def test_closing_ends_what_runs_with_an_error(tmp_path):
    server: ForeignServer
    async with recorded.server("vllm", stream(recorded.VLLM_ROLE, asyncio.Event())) as server, rig(tmp_path, server) as router:
        call = router.caller()
        task = asyncio.create_task(call("POST", "/v1/chat/completions", asks(stream=True)))
        while not call.sent:
            call.got.clear()
            await call.got.wait()
        await router.fleet.close()
        await task
        assert call.events[-1]["error"]["code"] == "worker_lost"
        assert await server.next_hang_up() == "/v1/chat/completions"


async def test_prompts_that_begin_alike_go_to_the_server_that_has_their_beginning(tmp_path):
    one, other = recorded.server("vllm", name="one"), recorded.server("vllm", name="other")
    async with one, other, rig(tmp_path, one, other) as router:
        beginnings = ["You translate. " * 40, "You summarize. " * 40]
        served = []
        for turn in range(8):
            messages = [{"role": "system", "content": beginnings[turn % 2]}, {"role": "user", "content": f"{turn}: hi"}]
            await router.caller()("POST", "/v1/chat/completions", {"model": "chat", "messages": messages, "stream": True})
            served.append(one if other.asked.empty() else other)
            (one if other.asked.empty() else other).asked.get_nowait()
        assert len({server.name for server in served[0::2]}) == 1
        assert len({server.name for server in served[1::2]}) == 1


async def test_a_deadline_of_the_client_ends_an_answer_upstream_too(tmp_path):
    async with recorded.server("vllm", stream(recorded.VLLM_ROLE, asyncio.Event())) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True), {"X-Pagoda-Deadline-Ms": "300"})
        assert call.events[-1]["error"]["code"] == "deadline_exceeded"
        assert await server.next_hang_up() == "/v1/chat/completions"
        await router.until_nothing_is_held()


@given(
    fates=st.lists(
        st.tuples(st.sampled_from(["whole", "stream", "hang", "breaks", "bad", "busy"]), st.booleans(), st.booleans()), max_size=12
    ),
    turns=st.integers(0, 60),
)
@settings(max_examples=25)
def test_whatever_becomes_of_requests_nothing_stays_reserved(tmp_path_factory, fates, turns):
    """Each has an answer, streams or not, and its client leaves sooner or later; `turns` of the loop lie between two of them."""
    answers = {
        "whole": json_answer(recorded.VLLM_WHOLE),
        "stream": stream(*recorded.VLLM_STREAM),
        "hang": stream(recorded.VLLM_ROLE, asyncio.Event()),
        "breaks": stream(recorded.VLLM_ROLE, breaks=True),
        "bad": json_answer(recorded.VLLM_TOO_LONG, 400),
        "busy": json_answer(recorded.TGI_OVERLOADED, 429),
    }

    async def run() -> None:
        async with recorded.server("vllm") as server, rig(tmp_path_factory.mktemp("fates"), server) as router:
            calls, tasks = [], []
            for fate, streams, leaves in fates:
                server.answers["/v1/chat/completions"] = answers[fate]
                calls.append(call := router.caller())
                tasks.append(asyncio.create_task(call("POST", "/v1/chat/completions", asks(stream=streams))))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if leaves:
                    call.left.set()
            for call in calls:  # a worker that failed often may be left alone by now: some would wait for long
                call.left.set()
            await asyncio.gather(*tasks)
            await router.until_nothing_is_held()
            assert router.link._since_look_tokens <= 0
            assert router.dispatcher.queue(ModelName("chat")) == (0, 0)

    asyncio.run(run())


# ---------------------------------------------------------------- responses


def response_events(call: Any) -> list[Any]:
    blocks = [block for block in call.body.decode().split("\n\n") if block]
    return [msgspec.json.decode(block.partition("\ndata: ")[2]) for block in blocks]


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_response_is_asked_as_a_chat_and_answered_as_a_response(tmp_path, backend):
    async with recorded.server(backend) as server, rig(tmp_path, server) as router:
        body = {
            "model": "chat",
            "input": "hi",
            "instructions": "be brief",
            "max_output_tokens": 9,
            "top_k": 3,
            "text": {"format": {"type": "text"}},
        }
        call = await router.caller()("POST", "/v1/responses", body)
        asked = await server.next_request()
        assert asked.path == "/v1/chat/completions"
        assert asked.json["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
        assert (asked.json["stream"], asked.json["top_k"]) == (True, 3)
        assert asked.json["max_tokens" if backend == "tgi" else "max_completion_tokens"] == 9
        assert "logprobs" not in asked.json
        answer = call.json
        (message,) = answer["output"]
        assert (call.status, answer["object"], answer["model"]) == (200, "response", "chat")
        assert message["content"][0]["text"].startswith("Hello")
        assert answer["usage"]["input_tokens"] == 9
        assert (answer["status"], answer["usage"]["output_tokens"]) == (("incomplete", 2) if backend == "tgi" else ("completed", 3))
        (outcome,) = router.recorder.outcomes
        assert (outcome.status, outcome.endpoint, outcome.prompt_tokens) == (200, "responses", 9)
        await router.until_nothing_is_held()


async def test_a_responses_stream_of_a_foreign_server_has_thinking_and_calls_as_items(tmp_path):
    answer = stream(*recorded.VLLM_TOOL_STREAM, recorded.DONE)
    async with recorded.server("vllm", answer) as server, rig(tmp_path, server) as router:
        tools = [{"type": "function", "name": "add", "parameters": {"type": "object"}}, {"type": "function", "name": "stop"}]
        call = await router.caller()("POST", "/v1/responses", {"model": "chat", "input": "hi", "tools": tools, "stream": True})
        asked = await server.next_request()
        assert [tool["function"]["name"] for tool in asked.json["tools"]] == ["add", "stop"]
        events = response_events(call)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
        thought, one, other = events[-1]["response"]["output"]
        assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
        assert (one["call_id"], one["name"], one["arguments"]) == ("chatcmpl-tool-1", "add", '{"a":3}')
        assert (other["call_id"], other["name"], other["arguments"]) == ("chatcmpl-tool-2", "stop", "{}")
        assert events[-1]["response"]["usage"]["input_tokens_details"]["cached_tokens"] == 4


def test_a_call_in_tgis_form_is_one_too():
    """An object where others have a list, without an id."""
    response = RelayedResponse(ResponsesRequest(model="chat", input="hi"))
    for name, arguments, finish in (("add", "", None), (None, '{"a":', None), (None, "3}", None), (None, "", "stop")):
        call = {"index": 0, "id": "", "type": "function", "function": {"name": name, "arguments": arguments}}
        choice = {"index": 0, "delta": {"role": "assistant", "tool_calls": call}, "finish_reason": finish}
        response.feed(b"data: " + msgspec.json.encode({"choices": [choice]}) + b"\n\n")
    (item,) = msgspec.json.decode(response.whole())["output"]
    assert (item["name"], item["arguments"], item["status"]) == ("add", '{"a":3}', "completed")
    assert item["call_id"].startswith("call_")


@pytest.mark.parametrize("event", [b"data: {", b'data: {"choices": 3}', b'data: {"choices": [{"index": 0}]}'])
def test_what_is_no_chat_is_no_response(event):
    with pytest.raises(UpstreamFailed, match="not understood"):
        RelayedResponse(ResponsesRequest(model="chat", input="hi")).feed(event + b"\n\n")


@pytest.mark.parametrize("streams", [True, False])
async def test_a_response_whose_server_is_lost_says_so_in_its_own_way(tmp_path, streams):
    answer = stream(recorded.VLLM_ROLE, *recorded.VLLM_TOKENS, breaks=True)
    async with recorded.server("vllm", answer) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/responses", {"model": "chat", "input": "hi", "stream": streams})
        if streams:
            last = response_events(call)[-1]
            assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
            assert last["response"]["output"][0]["content"][0]["text"].startswith("Hello"), "what came before it is there"
        else:
            assert (call.status, call.error["code"]) == (502, "worker_lost")
        assert router.recorder.outcomes[0].completion_tokens == 3, "and is billed"


async def test_a_client_that_leaves_a_response_cancels_upstream(tmp_path):
    server: ForeignServer
    async with recorded.server("vllm", stream(recorded.VLLM_ROLE, asyncio.Event())) as server, rig(tmp_path, server) as router:
        task = asyncio.create_task(router.caller()("POST", "/v1/responses", {"model": "chat", "input": "hi"}))
        await server.next_request()
        task.cancel()
        assert await server.next_hang_up() == "/v1/chat/completions"
        await router.until_nothing_is_held()


REFUSED_RESPONSES = [
    ({"include": ["message.output_text.logprobs"]}, "include", "vllm"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is kept"),
    ({"input": []}, "input", "input is empty"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED_RESPONSES)
async def test_what_a_foreign_server_cannot_make_of_a_response_is_refused_before_it_is_asked(tmp_path, fields, param, words):
    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/responses", {"model": "chat", "input": "hi", **fields})
        assert (call.status, call.error["param"]) == (400, param)
        assert words in call.error["message"]
        assert server.asked.empty()


async def test_what_a_foreign_server_finds_wrong_with_a_response_is_told_in_its_fields(tmp_path):
    wrong = {
        "error": {"message": "max_completion_tokens is too large", "type": "BadRequestError", "param": "max_completion_tokens", "code": 400}
    }
    async with recorded.server("vllm", json_answer(wrong, 400)) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/responses", {"model": "chat", "input": "hi", "max_output_tokens": 9999})
        assert (call.status, call.error["param"]) == (400, "max_output_tokens")
        assert call.error["message"] == "max_output_tokens is too large"


async def test_responses_of_a_mixed_model_go_where_its_weights_say(tmp_path):
    own, vllm = ScriptedWorker("chat", variant="pagoda"), recorded.server("vllm", variant="vllm", name="v")
    offered = replace(offered_by("pagoda", "vllm"), variants=(("pagoda", 0), ("vllm", 100)))
    async with own, vllm, rig(tmp_path, own, vllm, models=(offered,)) as router:
        call = await router.caller()("POST", "/v1/responses", {"model": "chat", "input": "hi"})
        assert call.status == 200
        assert own.submits.empty()
        assert (await vllm.next_request()).path == "/v1/chat/completions"


async def test_a_server_that_hangs_is_left_alone_before_its_looks_have_failed_three_times(tmp_path, monkeypatch):
    """A real vLLM under SIGSTOP got every new request for 16 s (three looks of 5 s), as it looks idle. Placement and breaker go by how long
    it has been silent."""
    monkeypatch.setattr(ForeignRig, "http_timing", replace(QUICK, look_timeout_s=0.2))
    server = recorded.server("vllm", stream(recorded.VLLM_ROLE, *recorded.VLLM_TOKENS, asyncio.Event()))
    async with server, rig(tmp_path, server) as router:
        request = asyncio.create_task(router.caller()("POST", "/v1/chat/completions", asks(stream=True)))
        await server.next_request()
        server.answers["/health"] = Answer(parts=[asyncio.Event()])
        looks = server.looks
        while server.looks == looks:
            await asyncio.sleep(0.01)
        while not router.link.view().silent_s:
            assert router.link.view().routable
            await asyncio.sleep(0.01)
        request.cancel()


async def test_a_lost_worker_is_told_without_the_http_clients_inside(tmp_path):
    server = recorded.server("vllm", stream(recorded.VLLM_ROLE, *recorded.VLLM_TOKENS, breaks=True))
    async with server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
        message = call.events[-1]["error"]["message"]
        assert "was lost" in message
        assert "Error:" not in message
        assert "400" not in message


async def test_a_deadline_that_passes_is_told_without_what_was_left_of_it(tmp_path):
    async with recorded.server("vllm", stream(recorded.VLLM_ROLE, asyncio.Event())) as server, rig(tmp_path, server) as router:
        call = await router.caller()("POST", "/v1/chat/completions", asks(), {"X-Pagoda-Deadline-Ms": "300"})
        assert call.error["message"] == "the request's deadline passed: ask for fewer tokens or more time"


DEAD = {"error": {"message": "EngineCore encountered an issue. See stack trace (above) for the root cause.", "type": "InternalServerError"}}


async def test_a_request_that_finds_a_dead_engine_is_tried_elsewhere(tmp_path):
    """vLLM's API server outlives its engine for seconds and answers 500 to whatever comes."""
    dead, alive = recorded.server("vllm", json_answer(DEAD, 500), name="dead"), recorded.server("vllm", name="alive")
    async with dead, alive, rig(tmp_path, dead, alive) as router:
        while dead.asked.empty():  # which of two idle ones is drawn
            call = await router.caller()("POST", "/v1/chat/completions", asks(stream=True))
            assert (call.status, call.events[-1]) == (200, "[DONE]")
        assert router.metric("retries_total", model="chat", reason="worker_lost") == 1


@pytest.mark.parametrize("where", [(Vllm, "request"), (Connections, "new")], ids=["its body", "its connection"])
async def test_a_fault_of_the_router_with_one_request_ends_that_request(tmp_path, monkeypatch, where):
    def fault(*_):
        raise RuntimeError("a bug")

    async with recorded.server("vllm") as server, rig(tmp_path, server) as router:
        with monkeypatch.context() as broken:
            broken.setattr(*where, fault)
            call = await router.caller()("POST", "/v1/chat/completions", asks())
        assert call.status == 502
        assert "the router failed on this request" in call.error["message"]
        await router.until_nothing_is_held()
        assert (await router.caller()("POST", "/v1/chat/completions", asks(stream=True))).events[-1] == "[DONE]"
