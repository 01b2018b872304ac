"""Exchanges of other people's servers, byte for byte where bytes matter: in the shapes of vLLM 0.32 (the real one: `make test-vllm`), TGI
3.3 and TensorRT-LLM 1.0 to 1.3, as their sources write them (router/src of TGI at db931fc, tensorrt_llm/serve). Text is shortened, ids are
invented.
"""

from typing import Any

from foreign_server import Answer, ForeignServer, json_answer, stream

VLLM_METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="upstream"} 2.0
vllm:num_requests_waiting{engine="0",model_name="upstream"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="upstream",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="upstream"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="upstream"} 100.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1024",sliding_window="None"} 1.0
"""
VLLM_IDLE = VLLM_METRICS.replace(b"} 2.0", b"} 0.0").replace(b'upstream"} 1.0', b'upstream"} 0.0').replace(b"0.25", b"0.0")
VLLM_MODELS = {"object": "list", "data": [{"id": "upstream", "object": "model", "owned_by": "vllm", "max_model_len": 2048}]}
VLLM_TOO_LONG = {
    "error": {
        "message": "This model's maximum context length is 2048 tokens. However, you requested 4096 output tokens and your prompt contains "
        "9 input tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
        "type": "BadRequestError",
        "param": "input_tokens",
        "code": 400,
    }
}
VLLM_STREAM_ERROR = (
    b'data: {"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}\n\n'
)


def _chunk(delta: str, finish: str = "null") -> bytes:
    return (
        f'data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"upstream",'
        f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]}}\n\n'
    ).encode()


VLLM_ROLE = _chunk('{"role":"assistant","content":""}')
VLLM_TOKENS = (_chunk('{"content":"Hello"}'), _chunk('{"content":" \\"model\\":\\"x\\" \\n\\n"}'))
VLLM_LAST = _chunk('{"content":""}', '"stop"')
VLLM_USAGE = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,"model":"upstream","choices":[],'
    b'"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
VLLM_TOOL_STREAM = (
    _chunk('{"role":"assistant","content":""}'),
    _chunk('{"reasoning":"Hm."}'),
    _chunk('{"tool_calls":[{"id":"chatcmpl-tool-1","type":"function","index":0,"function":{"name":"add","arguments":""}}]}'),
    _chunk('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":"}}]}'),
    _chunk('{"tool_calls":[{"index":0,"function":{"arguments":"3}"}}]}'),
    _chunk('{"tool_calls":[{"id":"chatcmpl-tool-2","type":"function","index":1,"function":{"name":"stop","arguments":"{}"}}]}'),
    _chunk("{}", '"tool_calls"'),
    VLLM_USAGE,
)
"""Without its [DONE]."""
DONE = b"data: [DONE]\n\n"
VLLM_STREAM = (VLLM_ROLE, *VLLM_TOKENS, VLLM_LAST, VLLM_USAGE, DONE)
VLLM_WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "upstream",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 9, "total_tokens": 11, "completion_tokens": 2, "prompt_tokens_details": None},
}
VLLM_VECTORS = {
    "id": "embd-b24427b2fa41275c",
    "object": "list",
    "created": 1790000000,
    "model": "upstream",
    "data": [{"index": 0, "object": "embedding", "embedding": [0.6, -0.8]}, {"index": 1, "object": "embedding", "embedding": [1.0, 0.0]}],
    "usage": {
        "prompt_tokens": 5,
        "total_tokens": 5,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    },
}
VLLM_TOKENIZED = {"count": 3, "max_model_len": 2048, "tokens": [278, 80, 436], "token_strs": ["he", "l", "lo"]}
VLLM_DETOKENIZED = {"prompt": '!"# "model":"x"'}
VLLM_NO_SUCH_PATH = {"detail": "Not Found"}
"""What a vLLM whose model generates says of /v1/embeddings."""
VLLM_NO_SUCH_MODEL = {"error": {"message": "The model `upstream` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}}
VLLM_WITHOUT_CACHE = VLLM_IDLE.replace(b'num_gpu_blocks="1024"', b'num_gpu_blocks="1"')
"""Of an encoder, which keeps no keys and values."""

TGI_INFO = {
    "model_id": "org/upstream",
    "model_sha": None,
    "model_pipeline_tag": None,
    "max_concurrent_requests": 8,
    "max_best_of": 2,
    "max_stop_sequences": 4,
    "max_input_tokens": 1024,
    "max_total_tokens": 2048,
    "validation_workers": 2,
    "max_client_batch_size": 4,
    "router": "text-generation-router",
    "version": "3.3.5",
    "sha": None,
    "docker_label": None,
}
TGI_2_INFO = TGI_INFO | {"max_batch_total_tokens": 16384, "version": "2.4.0"}
TGI_2_METRICS = b"""# TYPE tgi_queue_size gauge
tgi_queue_size 3
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 5
# TYPE tgi_batch_current_max_tokens gauge
tgi_batch_current_max_tokens 4096
# TYPE tgi_request_count counter
tgi_request_count 12
"""
TGI_METRICS = TGI_2_METRICS + b"# TYPE tgi_batch_max_total_tokens gauge\ntgi_batch_max_total_tokens 16384\n"
TGI_MODELS = {"object": "list", "data": [{"id": "org/upstream", "object": "model", "created": 0, "owned_by": "org/upstream"}]}
TGI_TOO_LONG = {
    "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 9 `inputs` tokens and 4096",
    "error_type": "validation",
}
TGI_OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}
TGI_FAILED = {"error": "Request failed during generation: Server error: CUDA out of memory", "error_type": "generation"}
TGI_2_STREAM_ERROR = b'data:{"error":"Request failed during generation: Server error","error_type":"generation"}\n\n'
TGI_TOKENIZED = [{"id": 278, "text": "he", "start": 0, "stop": 2}, {"id": 80, "text": "l", "start": 2, "stop": 3}]
TGI_CHAT_TOKENIZED = {"tokenize_response": TGI_TOKENIZED, "templated_text": "<user>hel"}


def tgi_stream_error(message: str) -> bytes:
    """With 422 whatever the matter is; [DONE] follows."""
    return f'data: {{"error":{{"message":"{message}","http_status_code":422}}}}\n\ndata: [DONE]\n\n'.encode()


TGI_STREAM_ERROR = tgi_stream_error("Request failed during generation: Server error")


def _tgi_chunk(choices: str, usage: str = "null") -> bytes:
    """Without a space after data:, as older versions' axum writes it."""
    return (
        'data:{"object":"chat.completion.chunk","id":"","created":1790000000,"model":"org/upstream","system_fingerprint":"3.3.5-native",'
        f'"choices":[{choices}],"usage":{usage}}}\n\n'
    ).encode()


TGI_STREAM = (
    _tgi_chunk('{"index":0,"delta":{"role":"assistant","content":"Hello"},"logprobs":null,"finish_reason":null}'),
    b":\n\n",
    _tgi_chunk('{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":"length"}'),
    _tgi_chunk("", '{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}'),
    b"data:[DONE]\n\n",
)


def _tgi_text(index: int, text: str, finish: str = "", usage: str = "") -> bytes:
    """An event of /v1/completions: each prompt's last one has that prompt's usage."""
    return (
        'data: {"object":"text_completion","id":"","created":1790000000,'
        f'"choices":[{{"index":{index},"text":"{text}","logprobs":null,"finish_reason":"{finish}"}}],'
        f'"model":"org/upstream","system_fingerprint":"3.3.5-native"{usage}}}\n\n'
    ).encode()


TGI_TWO_PROMPTS = (
    _tgi_text(0, "a"),
    _tgi_text(1, "b"),
    _tgi_text(0, "c", "eos_token", ',"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}'),
    _tgi_text(1, "d", "stop_sequence", ',"usage":{"prompt_tokens":6,"completion_tokens":2,"total_tokens":8}'),
    DONE,
)

TRT_ITERATION = {
    "gpuMemUsage": 76665782272,
    "iter": 154,
    "iterLatencyMS": 7.8,
    "kvCacheStats": {
        "allocNewBlocks": 3126,
        "allocTotalBlocks": 3126,
        "cacheHitRate": 0.00128,
        "freeNumBlocks": 750,
        "maxNumBlocks": 1000,
        "missedBlocks": 3121,
        "reusedBlocks": 4,
        "tokensPerBlock": 32,
        "usedNumBlocks": 250,
    },
    "maxNumActiveRequests": 64,
    "numActiveRequests": 7,
    "numQueuedRequests": 2,
}
TRT_MODELS = {"object": "list", "data": [{"id": "upstream", "object": "model", "created": 1790000000, "owned_by": "tensorrt_llm"}]}
TRT_BAD = {"error": "[{'type': 'extra_forbidden', 'loc': ('body', 'mirostat'), 'msg': 'Extra inputs are not permitted', 'input': 1}]"}
"""What FastAPI found."""
TRT_TOO_LONG = {
    "object": "error",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
    "message": "The sum of prompt length (9.0), query length (0) and max_tokens (4096) should not exceed max_num_tokens (2048)",
}


def server(backend: str, completion: Answer | None = None, **more: Any) -> ForeignServer:
    """Healthy and idle; `completion` is what both generation endpoints answer."""
    both = dict.fromkeys(("/v1/chat/completions", "/v1/completions"), completion or stream(*STREAMS[backend]))
    return ForeignServer(backend, {"/health": Answer(), **LOOKS[backend], **both}, **more)


STREAMS = {"vllm": VLLM_STREAM, "tgi": TGI_STREAM, "tensorrt-llm": VLLM_STREAM}
LOOKS = {
    "vllm": {"/metrics": Answer(200, (VLLM_IDLE,), "text/plain"), "/v1/models": json_answer(VLLM_MODELS)},
    "tgi": {
        "/info": json_answer(TGI_INFO),
        "/metrics": Answer(200, (b"tgi_queue_size 0\ntgi_batch_current_size 0\ntgi_batch_current_max_tokens 0\n",), "text/plain"),
        "/v1/models": json_answer(TGI_MODELS),
    },
    "tensorrt-llm": {"/metrics": json_answer([]), "/v1/models": json_answer(TRT_MODELS)},
}
