"""Embeddings and conversions of tokens on foreign backends, through the whole router: recorded exchanges over real HTTP."""

import asyncio
import base64
import struct
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import recorded
from foreign_rig import ForeignRig, offered_by, rig
from foreign_server import Answer, ForeignServer, json_answer
from hypothesis import given
from hypothesis import strategies as st
from scripted import Caller, byte_level_tokenizer
from scripted_worker import ScriptedWorker

from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.errors import BadRequest
from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.keyring import Keyring
from pagoda_router.keys.store import KeyStore
from pagoda_router.openai.relayed_tokens import conversion_of
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.wire import worker_pb2 as wire

EMBEDDINGS = "/v1/embeddings"
MIXED = replace(offered_by("pagoda", "vllm"), variants=(("pagoda", 0), ("vllm", 100)))
HI = {"model": "chat", "input": ["hello", "b c"]}


def server(backend: str, answers: dict[str, Any], **more: Any) -> ForeignServer:
    made = recorded.server(backend, **more)
    made.answers |= {path: answer if isinstance(answer, Answer) else json_answer(answer) for path, answer in answers.items()}
    return made


# ---------------------------------------------------------------- embeddings


async def test_vectors_come_back_under_the_served_name_and_their_prompts_are_counted(tmp_path):
    async with server("vllm", {EMBEDDINGS: recorded.VLLM_VECTORS}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI | {"user": "u", "priority": 3, "truncate_prompt_tokens": 100})
        assert call.status == 200
        assert call.json == recorded.VLLM_VECTORS | {"model": "chat"}
        asked = await vllm.next_request()
        assert (asked.path, asked.json) == (EMBEDDINGS, HI | {"model": "upstream", "user": "u", "truncate_prompt_tokens": 100})
        await router.until_nothing_is_held()
        (outcome,) = router.recorder.outcomes
        assert (outcome.endpoint, outcome.status, outcome.model, outcome.served_name) == ("embeddings", 200, "chat", "chat")
        assert (outcome.prompt_tokens, outcome.completion_tokens, outcome.finish_reasons) == (5, 0, ("stop", "stop"))
        assert outcome.ttft_s is None


async def test_a_key_pays_for_the_tokens_that_the_server_counted_and_asks_only_what_is_its_own(tmp_path):
    async with server("vllm", {EMBEDDINGS: recorded.VLLM_VECTORS}) as vllm, rig(tmp_path, vllm) as router:
        keyring = Keyring("root", KeyStore(SqliteDatabase(tmp_path / "keys")), calendar=time.time)
        ledger = UsageLedger(None, None, lambda model: None, clock=lambda: 0.0, calendar=time.time)
        surface = SurfaceSettings()
        app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=surface, keyring=keyring, ledger=ledger)

        async def sends(secret: str, path: str, body: dict[str, object]) -> Caller:
            return await Caller(app)("POST", path, body, {"authorization": f"Bearer {secret}"})

        limited = (await sends("root", "/admin/v1/keys", {"name": "a", "tokens_per_minute": 100})).json
        stranger = (await sends("root", "/admin/v1/keys", {"name": "b", "models": ["other"]})).json
        assert (await sends(limited["key"], EMBEDDINGS, HI)).status == 200
        assert int(ledger._limits._tokens[limited["id"]].left) == 100 - 5
        larger = await sends(limited["key"], EMBEDDINGS, HI | {"input": "a b c " * 200})
        assert (larger.status, larger.error["code"]) == (429, "rate_limit_exceeded")
        for path, body in ((EMBEDDINGS, HI), ("/tokenize", {"model": "chat", "prompt": "hi"})):
            call = await sends(stranger["key"], path, body)
            assert (call.status, call.error["code"]) == (403, "model_not_allowed")
        assert vllm.asked.qsize() == 1


async def test_base64_passes_as_it_is(tmp_path):
    packed = base64.b64encode(struct.pack("<2f", 0.6, -0.8)).decode()
    vectors = recorded.VLLM_VECTORS | {"data": [{"index": 0, "object": "embedding", "embedding": packed}]}
    async with server("vllm", {EMBEDDINGS: vectors}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI | {"encoding_format": "base64"})
        assert call.json["data"][0]["embedding"] == packed
        assert (await vllm.next_request()).json["encoding_format"] == "base64"


async def test_a_model_that_generates_is_said_to_make_no_embeddings(tmp_path):
    answers = {EMBEDDINGS: json_answer(recorded.VLLM_NO_SUCH_PATH, 404)}
    async with server("vllm", answers) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI)
        assert (call.status, call.error["param"]) == (400, "model")
        assert call.error["message"].startswith("chat makes no embeddings: its vllm worker runs a model that generates text")
        assert router.recorder.outcomes[0].prompt_tokens == 0
        vllm.answers[EMBEDDINGS] = json_answer(recorded.VLLM_NO_SUCH_MODEL, 404)
        call = await router.caller()("POST", EMBEDDINGS, HI)
        assert (call.status, call.error["code"]) == (502, "worker_lost"), "that one is set up wrongly"


TEXTS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/responses", {"input": "hi"}),
]


@pytest.mark.parametrize(("path", "body"), TEXTS)
@pytest.mark.parametrize("streams", [True, False])
async def test_a_model_that_embeds_is_said_to_generate_no_text(tmp_path, path, body, streams):
    answers = dict.fromkeys(("/v1/chat/completions", "/v1/completions"), json_answer(recorded.VLLM_NO_SUCH_PATH, 404))
    async with server("vllm", answers) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", path, body | {"model": "chat", "stream": streams})
        assert (call.status, call.error["param"]) == (400, "model")
        assert call.error["message"].startswith("chat generates no text: its vllm worker has no endpoint for that")


@pytest.mark.parametrize("backend", ["tgi", "tensorrt-llm"])
async def test_a_server_that_makes_no_embeddings_is_not_asked_for_them(tmp_path, backend):
    async with recorded.server(backend) as foreign, rig(tmp_path, foreign) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI)
        assert (call.status, call.error["param"]) == (400, "model")
        assert call.error["message"] == f"a {backend} worker makes no embeddings: use a model whose backend is pagoda or vllm"
        assert foreign.asked.empty()


BAD = [
    ({"model": "chat"}, {}, "input"),
    (HI | {"encoding_format": "bytes"}, {}, "encoding_format"),
    (HI | {"priority": "high"}, {}, "priority"),
    (HI, {"X-Pagoda-Trace": "1"}, "X-Pagoda-Trace"),
    (HI, {"X-Pagoda-Features": "batching=off"}, "X-Pagoda-Features"),
]


@pytest.mark.parametrize(("body", "headers", "param"), BAD)
async def test_what_is_wrong_of_an_embedding_is_said_before_the_server_is_asked(tmp_path, body, headers, param):
    async with recorded.server("vllm") as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", EMBEDDINGS, body, headers)
        assert (call.status, call.error["param"]) == (400, param)
        assert vllm.asked.empty()


async def test_a_prompt_that_is_too_long_for_an_embedding_has_the_code_for_that(tmp_path):
    async with server("vllm", {EMBEDDINGS: json_answer(recorded.VLLM_TOO_LONG, 400)}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI)
        assert (call.status, call.error["code"]) == (400, "context_length_exceeded")


async def test_an_answer_that_is_no_embedding_is_the_workers_fault(tmp_path):
    async with server("vllm", {EMBEDDINGS: recorded.VLLM_WHOLE}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI)
        assert (call.status, call.error["code"]) == (502, "worker_lost")
        vllm.answers[EMBEDDINGS] = json_answer({"object": "list"})
        assert (await router.caller()("POST", EMBEDDINGS, HI)).status == 502


async def test_an_embedding_that_one_server_cannot_take_is_made_by_another(tmp_path):
    busy = server("vllm", {EMBEDDINGS: json_answer({"error": {"message": "not now"}}, 503)}, name="busy")
    async with busy, server("vllm", {EMBEDDINGS: recorded.VLLM_VECTORS}, name="free") as free, rig(tmp_path, busy, free) as router:
        for _ in range(4):
            assert (await router.caller()("POST", EMBEDDINGS, HI)).status == 200
        assert not busy.asked.empty()


async def test_embeddings_of_a_mixed_model_are_our_own_workers_unless_a_header_names_the_other(tmp_path):
    own, vllm = ScriptedWorker("chat", variant="pagoda"), server("vllm", {EMBEDDINGS: recorded.VLLM_VECTORS}, variant="vllm", name="v")
    own.features = [wire.FEATURE_EMBEDDINGS]
    own.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with own, vllm, rig(tmp_path, own, vllm, models=(MIXED,)) as router:
        call = await router.caller()("POST", EMBEDDINGS, HI, {"X-Backend": "vllm"})
        assert (call.status, len(call.json["data"])) == (200, 2)
        assert own.submits.empty()
        task = asyncio.create_task(router.caller()("POST", EMBEDDINGS, HI | {"input": [1]}))
        submit = await own.next_submit()
        assert submit.embedding
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert vllm.asked.qsize() == 1


async def test_a_server_without_a_kv_cache_takes_several_embeddings_at_once(tmp_path):
    made = asyncio.Event()
    body = msgspec.json.encode(recorded.VLLM_VECTORS)
    answers = {EMBEDDINGS: Answer(200, (made, body)), "/metrics": Answer(200, (recorded.VLLM_WITHOUT_CACHE,), "text/plain")}
    async with server("vllm", answers) as vllm, rig(tmp_path, vllm) as router:
        long = HI | {"input": "a b c d " * 50}
        tasks = [asyncio.create_task(router.caller()("POST", EMBEDDINGS, long)) for _ in range(4)]
        for _ in tasks:
            await vllm.next_request()
        made.set()
        assert [call.status for call in await asyncio.gather(*tasks)] == [200] * 4


# ---------------------------------------------------------------- tokens


async def test_a_text_is_tokenized_by_its_server_in_one_form_whatever_that_is(tmp_path):
    prompt = {"model": "chat", "prompt": "hello", "return_token_strs": True, "add_special_tokens": None}
    async with server("vllm", {"/tokenize": recorded.VLLM_TOKENIZED}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", "/tokenize", prompt)
        assert (call.status, call.json) == (200, recorded.VLLM_TOKENIZED)
        assert call.headers["content-type"] == "application/json"
        assert (await vllm.next_request()).json == {"model": "upstream", "prompt": "hello", "return_token_strs": True}
        await router.until_nothing_is_held()
        assert router.recorder.outcomes == [], "as of our own workers, nobody pays for it"
    async with server("tgi", {"/tokenize": recorded.TGI_TOKENIZED}) as tgi, rig(tmp_path, tgi) as router:
        call = await router.caller()("POST", "/tokenize", prompt)
        assert (call.status, call.json) == (200, {"count": 2, "max_model_len": None, "tokens": [278, 80], "token_strs": ["he", "l"]})
        asked = await tgi.next_request()
        assert (asked.path, asked.json["inputs"]) == ("/tokenize", "hello")


async def test_a_chat_is_tokenized_as_its_servers_template_writes_it(tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    async with server("vllm", {"/tokenize": recorded.VLLM_TOKENIZED}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", "/tokenize", chat)
        assert (call.status, call.json["count"]) == (200, 3), "the only model needs no name"
        assert (await vllm.next_request()).json == chat | {"model": "upstream"}
    async with server("tgi", {"/chat_tokenize": recorded.TGI_CHAT_TOKENIZED}) as tgi, rig(tmp_path, tgi) as router:
        call = await router.caller()("POST", "/tokenize", chat)
        assert (call.status, call.json) == (200, {"count": 2, "max_model_len": None, "tokens": [278, 80], "token_strs": None})
        assert (await tgi.next_request()).path == "/chat_tokenize"


async def test_token_ids_become_text_again(tmp_path):
    async with server("vllm", {"/detokenize": recorded.VLLM_DETOKENIZED}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", "/detokenize", {"model": "chat", "tokens": [5, 6, 7]})
        assert (call.status, call.json) == (200, recorded.VLLM_DETOKENIZED)
        assert (await vllm.next_request()).json == {"model": "upstream", "tokens": [5, 6, 7]}
        vllm.answers["/detokenize"] = json_answer({"prompt": ""})
        assert (await router.caller()("POST", "/detokenize", {"model": "chat", "tokens": []})).json == {"prompt": ""}


LACKING = [
    ("tgi", "/detokenize", {"tokens": [1]}),
    ("tensorrt-llm", "/tokenize", {"prompt": "hi"}),
    ("tensorrt-llm", "/detokenize", {"tokens": [1]}),
]


@pytest.mark.parametrize(("backend", "path", "body"), LACKING)
async def test_a_server_without_a_conversion_is_named_and_not_asked(tmp_path, backend, path, body):
    async with recorded.server(backend) as foreign, rig(tmp_path, foreign) as router:
        call = await router.caller()("POST", path, body | {"model": "chat"})
        assert (call.status, call.error["param"]) == (400, "model")
        assert call.error["message"].startswith(f"a {backend} worker has no {path}: use the model's tokenizer")
        assert foreign.asked.empty()


async def test_a_server_of_a_version_without_it_says_so(tmp_path):
    async with recorded.server("vllm") as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", "/tokenize", {"model": "chat", "prompt": "hi"})
        assert (call.status, call.error["param"]) == (400, "model")
        assert "has no /tokenize" in call.error["message"]


@pytest.mark.parametrize("answer", [{"choices": [{"index": 0}]}, {"tokens": "none"}, [], {}])
async def test_an_answer_that_is_no_conversion_is_the_workers_fault(tmp_path, answer):
    async with server("vllm", {"/tokenize": answer}) as vllm, rig(tmp_path, vllm) as router:
        call = await router.caller()("POST", "/tokenize", {"model": "chat", "prompt": "hi"})
        assert (call.status, call.error["code"]) == (502, "worker_lost")


async def test_tokenizing_wakes_no_worker(tmp_path):
    async with recorded.server("vllm") as vllm, rig(tmp_path, vllm) as router:
        router.know(models=(offered_by("vllm"),))
        await router.until(lambda: not router.fleet.can_answer(ModelName("chat")))
        call = await router.caller()("POST", "/tokenize", {"model": "chat", "prompt": "hi"})
        assert (call.status, call.error["code"]) == (503, "no_worker")
        assert "try again later" in call.error["message"]
        info = await router.caller()("GET", "/tokenizer_info")
        assert (info.status, info.error["param"]) == (400, "model")


async def test_a_header_picks_whose_tokenizer_a_mixed_model_is_asked_for(tmp_path):
    own, vllm = ScriptedWorker("chat", variant="pagoda"), server("vllm", {"/tokenize": recorded.VLLM_TOKENIZED}, variant="vllm", name="v")
    own.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with own, vllm, rig(tmp_path, own, vllm, models=(MIXED,)) as router:
        prompt = {"model": "chat", "prompt": "hello world"}
        assert (await router.caller()("POST", "/tokenize", prompt)).json["tokens"] == byte_level_tokenizer().encode("hello world").ids
        assert vllm.asked.empty()
        for headers in ({"X-Backend": "vllm"}, {"X-Pagoda-Features": "variant=vllm"}):
            call = await router.caller()("POST", "/tokenize", prompt, headers)
            assert call.json["tokens"] == [278, 80, 436]
            await vllm.next_request()


async def test_a_client_that_leaves_while_its_text_is_tokenized_ends_that(tmp_path):
    async with server("vllm", {"/tokenize": Answer(200, (b" ", asyncio.Event()))}) as vllm, rig(tmp_path, vllm) as router:
        caller = router.caller()
        task = asyncio.create_task(caller("POST", "/tokenize", {"model": "chat", "prompt": "hi"}))
        await vllm.next_request()
        caller.left.set()
        await task
        assert await vllm.next_hang_up() == "/tokenize"
        await router.until_nothing_is_held()
        assert caller.sent == []


async def test_conversions_teach_nothing_of_how_long_answers_are(tmp_path):
    answers = {"/tokenize": recorded.VLLM_TOKENIZED, EMBEDDINGS: recorded.VLLM_VECTORS}
    async with server("vllm", answers) as vllm, rig(tmp_path, vllm) as router:
        before = _predicted(router)
        for _ in range(40):
            assert (await router.caller()("POST", "/tokenize", {"model": "chat", "prompt": "hi"})).status == 200
            assert (await router.caller()("POST", EMBEDDINGS, HI)).status == 200
        await router.until_nothing_is_held()
        assert _predicted(router) == before


def _predicted(router: ForeignRig) -> int:
    from test_dispatch import generation

    return router.dispatcher.expected_output_tokens(generation(model="chat", max_tokens=5000, explicit_max_tokens=False))


CHANGES = [
    ({"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
    ({"messages": [], "add_special_tokens": True}, "add_special_tokens"),
    ({"messages": [], "add_generation_prompt": False}, "add_generation_prompt"),
    ({"messages": [], "continue_final_message": True}, "continue_final_message"),
    ({"messages": [], "chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs"),
    ({"prompt": "a", "messages": []}, "prompt"),
    ({}, "prompt"),
]


@pytest.mark.parametrize(("body", "param"), CHANGES)
def test_what_tgi_would_ignore_of_a_conversion_is_refused(body, param):
    with pytest.raises(BadRequest) as refused:
        conversion_of("tgi", "/tokenize", _fields(body), None)
    assert refused.value.param == param


@given(st.lists(st.tuples(st.integers(0, 2**31), st.text())), st.booleans())
def test_tgis_tokens_are_told_one_by_one(tokens, shows):
    conversion = conversion_of("tgi", "/tokenize", _fields({"prompt": "a", "return_token_strs": shows}), 100)
    answer = msgspec.json.encode([{"id": each, "text": text, "start": 0, "stop": 0} for each, text in tokens])
    told = msgspec.to_builtins(conversion.read(answer))
    strings = [text for _, text in tokens] if shows else None
    assert told == {"count": len(tokens), "max_model_len": 100, "tokens": [each for each, _ in tokens], "token_strs": strings}


def _fields(body: dict[str, Any]) -> dict[str, bytes]:
    return {name: msgspec.json.encode(value) for name, value in body.items()}
