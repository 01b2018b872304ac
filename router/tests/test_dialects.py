"""What each kind of foreign server is told, and how its metrics and errors are read. No network."""

from dataclasses import replace

import msgspec
import pytest
import recorded

from pagoda_router.backends.base import RefusedByWorker
from pagoda_router.backends.dialect import Load
from pagoda_router.backends.looks import DIALECTS
from pagoda_router.errors import BadRequest, ContextTooLong, UpstreamFailed
from pagoda_router.relays import Relay

VLLM, TGI, TRT = DIALECTS["vllm"], DIALECTS["tgi"], DIALECTS["tensorrt-llm"]


def relay(stream: bool = True, wants_usage: bool = False, prefix_cache: bool = True, **fields: object) -> Relay:
    encoded = {name: msgspec.json.encode(value) for name, value in ({"model": "chat", "messages": []} | fields).items()}
    return Relay(
        path="/v1/chat/completions", fields=encoded, served_name="chat", stream=stream, wants_usage=wants_usage, prefix_cache=prefix_cache
    )


def sent(dialect, *, salt: str = "", **asked):
    return msgspec.json.decode(dialect.request(relay(**asked), "upstream", salt))


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda one: one.name)
def test_a_streams_usage_is_always_asked_for_and_the_model_is_the_servers_own(dialect):
    body = sent(dialect, stream_options=None, temperature=0.5, priority=3)
    options = {"include_usage": True} | ({"continuous_usage_stats": False} if dialect is TRT else {})
    assert body == {"model": "upstream", "messages": [], "temperature": 0.5, "stream_options": options}
    assert "stream_options" not in sent(dialect, stream=False)


def test_usage_in_every_chunk_only_reaches_the_server_when_the_client_gets_it():
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert sent(VLLM, wants_usage=True, stream_options=options)["stream_options"] == options
    assert sent(VLLM, stream_options=options | {"include_usage": False})["stream_options"] == {"include_usage": True}


def test_a_client_cannot_choose_a_salt_and_the_router_can():
    assert "cache_salt" not in sent(VLLM, cache_salt="another tenant's")
    assert sent(VLLM, cache_salt="another tenant's", salt="ab")["cache_salt"] == "ab"


def test_fields_that_a_server_would_refuse_the_request_for_stay_away_from_it():
    extras = {"top_k": 5, "metadata": {"a": "b"}, "service_tier": "auto"}
    assert extras.items() <= sent(VLLM, **extras).items()
    assert "metadata" not in sent(TRT, **extras)
    assert sent(TRT, **extras)["top_k"] == 5


IN_BOTH_SPELLINGS = [
    ({"guided_choice": ["yes", "no"]}, {"choice": ["yes", "no"]}),
    ({"guided_json": {"type": "object"}, "guided_whitespace_pattern": " ?"}, {"json": {"type": "object"}, "whitespace_pattern": " ?"}),
    ({"guided_regex": "a+", "guided_grammar": None, "structured_outputs": None}, {"regex": "a+"}),
    ({"guided_regex": None, "structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
]


@pytest.mark.parametrize(("asked", "told"), IN_BOTH_SPELLINGS)
def test_a_form_asked_for_in_the_older_spelling_reaches_a_vllm_that_knows_only_the_newer(asked, told):
    body = sent(VLLM, **asked)
    assert body["structured_outputs"] == told
    assert {name: value for name, value in asked.items() if value and name != "structured_outputs"}.items() <= body.items()


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda one: one.name)
def test_no_client_chooses_how_many_tokens_an_event_is(dialect):
    assert "stream_interval" not in sent(dialect, stream_interval=100)


def test_vllm_gets_as_many_requests_as_it_runs_at_once():
    def look(running: int, waiting: int, before: Load) -> Load:
        page = f'vllm:num_requests_running{{engine="0"}} {running}\nvllm:num_requests_waiting{{engine="0"}} {waiting}\n'
        return VLLM.load("/metrics", page.encode(), before)

    load = look(10, 0, Load())
    assert load.max_running == 256
    load = look(250, 0, load)
    assert load.max_running == 320, "all that it has got runs: more may fit"
    load = look(320, 0, load)
    assert load.max_running == 400
    for _ in range(3):
        load = look(384, 16, load)
    assert load.max_running == 400, "its batch is full"
    load = look(0, 0, load)
    assert load.max_running == 400


OBJECT = {"type": "object"}
FORMS = [
    # asked, response_format to TGI, to TensorRT-LLM
    ({"guided_json": OBJECT}, {"type": "json", "value": OBJECT}, {"type": "json", "schema": OBJECT}),
    ({"guided_json": '{"type": "object"}'}, {"type": "json", "value": OBJECT}, {"type": "json", "schema": OBJECT}),
    ({"structured_outputs": {"regex": "a+"}}, {"type": "regex", "value": "a+"}, {"type": "regex", "regex": "a+"}),
    ({"guided_choice": ["a.b", "c d"]}, {"type": "regex", "value": r"(a\.b|c d)"}, {"type": "regex", "regex": r"(a\.b|c d)"}),
    ({"structured_outputs": {"json_object": True}}, {"type": "json", "value": OBJECT}, {"type": "json", "schema": OBJECT}),
    ({"guided_grammar": "g"}, BadRequest, {"type": "ebnf", "ebnf": "g"}),
    ({"response_format": {"type": "json_object"}}, {"type": "json", "value": OBJECT}, {"type": "json_object"}),
    ({"guided_json": OBJECT, "response_format": {"type": "text"}}, {"type": "json", "value": OBJECT}, {"type": "json", "schema": OBJECT}),
    ({"guided_json": OBJECT, "response_format": {"type": "json_object"}}, BadRequest, BadRequest),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, BadRequest, BadRequest),
    ({"structured_outputs": {}}, None, None),
    ({"structured_outputs": {"what": 1}}, BadRequest, BadRequest),
    ({"structured_outputs": "json"}, BadRequest, BadRequest),
    ({"guided_choice": []}, BadRequest, BadRequest),
    ({"guided_json": "{"}, BadRequest, BadRequest),
    ({"guided_json": None, "structured_outputs": None}, None, None),
]


@pytest.mark.parametrize(("asked", "tgi", "trt"), FORMS)
def test_a_form_in_vllms_fields_is_asked_for_in_the_servers_own(asked, tgi, trt):
    for dialect, told in ((TGI, tgi), (TRT, trt)):
        if told is BadRequest:
            with pytest.raises(BadRequest):
                sent(dialect, **asked)
            continue
        body = sent(dialect, **asked)
        assert body.get("response_format") == told
        assert not {name for name in body if name.startswith("guided") or name == "structured_outputs"}


def test_what_tensorrt_llm_would_refuse_or_die_of_stays_away_from_it():
    assert "top_k" not in sent(TRT, top_k=-1)
    assert sent(TRT, top_k=4)["top_k"] == 4
    answered = {"role": "assistant", "content": "b", "reasoning_content": "hm", "reasoning": "hm"}
    asked = {"role": "user", "content": 'what does "reasoning" mean?'}
    assert sent(TRT, messages=[answered, asked])["messages"] == [{"role": "assistant", "content": "b"}, asked]


NOT_DONE = [
    ({"best_of": 2}, "best_of", "draws n choices"),
    ({"best_of": 3, "n": 2}, "best_of", "best_of is 3"),
    ({"guided_regex": "a", "structured_outputs": {"regex": "b"}}, "guided_regex", "leave one out"),
]


@pytest.mark.parametrize(("asked", "param", "words"), NOT_DONE)
def test_what_vllm_would_silently_not_do_is_refused(asked, param, words):
    with pytest.raises(BadRequest, match=words) as refused:
        sent(VLLM, **asked)
    assert refused.value.param == param


@pytest.mark.parametrize("asked", [{"best_of": 2, "n": 2}, {"best_of": 1}, {"best_of": None, "n": 2}])
def test_a_best_of_that_asks_for_nothing_more_passes(asked):
    assert asked.items() <= sent(VLLM, **asked).items()


def test_the_field_of_a_complaint_is_the_requests_own():
    body = {"error": {"message": "Input should be a valid list", "param": "body.messages"}}
    failure = VLLM.failure(400, msgspec.json.encode(body))
    assert isinstance(failure, RefusedByWorker)
    assert failure.error.param == "messages"


def test_tgi_is_told_of_the_output_limit_in_its_own_word():
    body = sent(TGI, max_completion_tokens=7)
    assert body["max_tokens"] == 7
    assert "max_completion_tokens" not in body


IN_TGIS_WORDS = [
    ({"stop": "\n"}, {"stop": ["\n"]}),
    ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
    ({"top_p": 1}, {}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    ({"presence_penalty": 0, "frequency_penalty": 0}, {"frequency_penalty": 0}),
    ({"response_format": {"type": "text"}, "seed": None}, {}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"response_format": {"type": "json_schema", "value": {"name": "x", "schema": {}}}},
    ),
]


@pytest.mark.parametrize(("asked", "told"), IN_TGIS_WORDS)
def test_what_tgi_refuses_or_misreads_of_openais_fields_reaches_it_in_its_own_form(asked, told):
    assert sent(TGI, stream=False, **asked) == {"model": "upstream", "messages": []} | told


def test_a_schema_reaches_every_version_of_tensorrt_llm():
    asked = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}}
    assert sent(TRT, **asked)["response_format"] == {"type": "json", "schema": {"type": "object"}}


def test_tensorrt_llm_knows_two_options_of_a_stream_only():
    options = {"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": True}
    told = sent(TRT, wants_usage=True, stream_options=options)["stream_options"]
    assert told == {"include_usage": True, "continuous_usage_stats": True}


def test_a_salt_for_a_completion_is_refused_where_tensorrt_llm_would_refuse_the_request():
    assert sent(TRT, salt="ab")["cache_salt"] == "ab"
    with pytest.raises(BadRequest) as refused:
        TRT.request(replace(relay(prompt="a"), path="/v1/completions"), "upstream", "ab")
    assert refused.value.param == "X-Pagoda-Features"


@pytest.mark.parametrize(("asked", "param"), [({"n": 2}, "n"), ({"prefix_cache": False}, "X-Pagoda-Features")])
def test_what_tgi_cannot_do_is_refused_by_name(asked, param):
    with pytest.raises(BadRequest) as refused:
        sent(TGI, **asked)
    assert refused.value.param == param


def test_vllms_load_is_read_from_its_metrics():
    load = VLLM.load("/metrics", recorded.VLLM_METRICS, Load())
    assert load == Load(running=2, waiting=1, kv_used=0.25, capacity_tokens=16384, block_size=16, max_running=256)


def test_an_older_vllm_calls_the_use_of_its_cache_otherwise():
    metrics = recorded.VLLM_METRICS.replace(b"kv_cache_usage", b"gpu_cache_usage")
    assert VLLM.load("/metrics", metrics, Load()).kv_used == 0.25


@pytest.mark.parametrize(
    ("info", "metrics"), [(recorded.TGI_INFO, recorded.TGI_METRICS), (recorded.TGI_2_INFO, recorded.TGI_2_METRICS)], ids=["3", "2"]
)
def test_tgis_load_is_read_from_its_info_and_its_metrics(info, metrics):
    load = TGI.load("/metrics", metrics, TGI.load("/info", msgspec.json.encode(info), Load()))
    assert load == Load(running=5, waiting=3, kv_used=0.25, capacity_tokens=16384, max_running=8)


def test_tensorrt_llms_load_is_that_of_its_last_iteration():
    body = msgspec.json.encode([{"iter": 1}, recorded.TRT_ITERATION])
    load = TRT.load("/metrics", body, Load())
    assert load == Load(running=7, waiting=2, kv_used=0.25, capacity_tokens=32000, block_size=32, max_running=64)


def test_tensorrt_llm_that_tells_of_no_iteration_keeps_its_capacity():
    before = Load(running=7, waiting=2, kv_used=0.9, capacity_tokens=32000, block_size=32)
    assert TRT.load("/metrics", b"[]", before) == Load(capacity_tokens=32000, block_size=32)


@pytest.mark.parametrize(
    ("dialect", "path", "body"),
    [
        (VLLM, "/metrics", b"process_cpu_seconds_total 4\n"),
        (TGI, "/metrics", b"nothing here"),
        (TGI, "/info", b"[]"),
        (TRT, "/metrics", b'{"a": 1}'),
        (TRT, "/metrics", b"# TYPE x gauge"),
    ],
)
def test_a_page_of_something_else_is_not_taken_for_a_load(dialect, path, body):
    with pytest.raises(ValueError, match=r"\w"):
        dialect.load(path, body, Load())


TOLD = [
    # server, status, body, error for the client (None: worth another worker), overloaded, words of the message
    (VLLM, 400, recorded.VLLM_TOO_LONG, ContextTooLong, False, "maximum context length is 2048"),
    (VLLM, 400, {"object": "error", "message": "top_p must be in (0, 1]", "code": 400}, BadRequest, False, "top_p must be"),
    (VLLM, 404, {"error": {"message": "The model `x` does not exist.", "param": "model"}}, UpstreamFailed, False, "does not exist"),
    (VLLM, 503, b"Service Unavailable", None, False, "503: Service Unavailable"),
    (TGI, 422, recorded.TGI_TOO_LONG, ContextTooLong, False, "must be <= 2048"),
    (TGI, 422, {"error": "Input validation error: `temperature` must be strictly positive"}, BadRequest, False, "strictly positive"),
    (TGI, 422, b"Failed to deserialize the JSON body into the target type: missing field `messages`", BadRequest, False, "missing field"),
    (TGI, 429, recorded.TGI_OVERLOADED, None, True, "Model is overloaded"),
    (TRT, 400, recorded.TRT_BAD, BadRequest, False, "Extra inputs are not permitted"),
    (TRT, 400, recorded.TRT_TOO_LONG, ContextTooLong, False, "max_num_tokens"),
    (TRT, 422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}, BadRequest, False, "Field required"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "status", "body", "error", "overloaded", "words"), TOLD)
def test_an_error_becomes_one_of_ours_with_the_servers_own_sentence(dialect, status, body, error, overloaded, words):
    failure = dialect.failure(status, body if isinstance(body, bytes) else msgspec.json.encode(body))
    assert isinstance(failure, RefusedByWorker)
    assert type(failure.error) is (type(None) if error is None else error)
    assert failure.overloaded == overloaded
    assert words in str(failure if failure.error is None else failure.error.message)
    assert '"error"' not in str(failure), "an error inside an error"


@pytest.mark.parametrize(("dialect", "status"), [(VLLM, 500), (TGI, 424), (TGI, 500), (TRT, 500)])
def test_a_server_that_failed_under_a_request_is_not_asked_again(dialect, status):
    failure = dialect.failure(status, msgspec.json.encode(recorded.TGI_FAILED))
    assert isinstance(failure, UpstreamFailed)
    assert "CUDA out of memory" in failure.message
