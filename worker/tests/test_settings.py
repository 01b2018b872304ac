"""Environment variables in, settings out; whatever is wrong is one line that says what to write."""

import json
from pathlib import Path
from typing import Any

import pytest

from pagoda_worker.errors import ConfigError
from pagoda_worker.settings.worker import parse_settings

MINIMAL = {"PAGODA_MODEL_NAME": "tiny", "PAGODA_MODEL_SOURCE": "builtin://tiny"}


def engine(**fields: Any) -> dict[str, str]:
    return {**MINIMAL, "PAGODA_ENGINE": json.dumps(fields)}


def test_two_variables_are_enough():
    settings = parse_settings(MINIMAL)
    assert (settings.model_name, settings.engine.model_dir.name) == ("tiny", "tiny")
    assert (settings.bind_host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 9000, 9001)
    assert (settings.drain_s, settings.stall_s, settings.session_token) == (30.0, 20.0, "")


def test_the_manifests_engine_becomes_the_engines_config():
    settings = parse_settings(
        {
            **engine(
                backend="pagoda",
                dtype="fp32",
                quantization="none",
                kvCache={"dtype": "int8", "blockSize": 32, "swap": "0Gi", "hostTier": "0Gi"},
                attention="eager",
                maxModelLen=2048,
                maxBatchTokens=512,
                maxRunning=64,
                prefixCaching=False,
                batchInvariant=True,
                compile=True,
                speculative={"method": "draft", "tokens": 6, "draft": "builtin://tiny-draft"},
                tensorParallel=1,
            ),
            "PAGODA_DEVICE": "cpu",
            "PAGODA_CPUS": "2",
        }
    )
    config = settings.engine
    assert (config.dtype, config.attention, config.device, config.threads) == ("fp32", "eager", "cpu", 2)
    assert (config.max_model_len, config.max_batch_tokens, config.max_running, config.block_size) == (2048, 512, 64, 32)
    assert config.prefix_caching is False
    assert config.batch_invariant is True
    assert config.compile is True
    assert (config.speculative, config.draft_tokens) == ("draft", 6)
    assert config.draft_dir is not None
    assert config.draft_dir.name == "tiny-draft"


@pytest.mark.parametrize(("written", "size"), [("4Gi", 4 << 30), ("0Gi", 0), ("512", 512), (4096, 4096), ("64Mi", 64 << 20)], ids=str)
def test_host_memory_for_blocks_is_bytes_or_a_quantity(written: str | int, size: int):
    config = parse_settings({**MINIMAL, **engine(kvCache={"swap": written, "hostTier": written}, longPrefillTokens=128)}).engine
    assert (config.swap_bytes, config.host_tier_bytes, config.long_prefill_tokens) == (size, size, 128)


def test_weights_are_read_when_the_manifest_says():
    assert parse_settings(MINIMAL).engine.load == "eager"
    assert parse_settings({**MINIMAL, **engine(load="lazy")}).engine.load == "lazy"


def test_the_self_test_runs_unless_it_is_turned_off():
    assert parse_settings(MINIMAL).engine.self_test is True
    assert parse_settings({**MINIMAL, "PAGODA_SELF_TEST": "off"}).engine.self_test is False


def test_the_memory_given_is_the_engines_to_divide():
    assert parse_settings({**MINIMAL, "PAGODA_MEMORY_BYTES": str(4 << 30)}).engine.memory_bytes == 4 << 30


def test_a_fetched_source_is_found_in_its_cache_or_said_to_be_missing(tmp_path: Path):
    remote = {**MINIMAL, "PAGODA_MODEL_SOURCE": "hf://pagoda/small", "PAGODA_MODEL_CACHE": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"no complete copy of its revision main; run python -m pagoda_worker\.fetch") as refusal:
        parse_settings(remote)
    assert (refusal.value.reason, refusal.value.exit_status) == ("ModelNotFound", 3)


WRONG = [
    ({"PAGODA_SELF_TEST": "maybe"}, "PAGODA_SELF_TEST is 'maybe'; it may be on, off"),
    ({"PAGODA_MODEL_CACHE": "models"}, "PAGODA_MODEL_CACHE is 'models'; it must be an absolute folder"),
    ({"PAGODA_HF_TOKEN": "x"}, "PAGODA_HF_TOKEN is not a setting of the worker"),
    ({"PAGODA_MODEL_NAME": ""}, "PAGODA_MODEL_NAME is not set: write the InferenceModel's metadata.name"),
    ({"PAGODA_MODEL_SOURCE": ""}, "PAGODA_MODEL_SOURCE is not set"),
    ({"PAGODA_GRPC_PROT": "1"}, "PAGODA_GRPC_PROT is not a setting of the worker; the closest is PAGODA_GRPC_PORT"),
    ({"PAGODA_GRPC_PORT": "grpc"}, "PAGODA_GRPC_PORT is 'grpc'; it must be a whole number from 0 to 65535"),
    ({"PAGODA_HTTP_PORT": "70000"}, "PAGODA_HTTP_PORT is '70000'"),
    ({"PAGODA_DEVICE": "tpu"}, "PAGODA_DEVICE is 'tpu'; it may be auto, cpu, cuda"),
    ({"PAGODA_DRAIN_S": "-1"}, "PAGODA_DRAIN_S is '-1'; it must be seconds from 0 to 86400"),
    ({"PAGODA_STALL_S": "nan"}, "PAGODA_STALL_S is 'nan'"),
    ({"PAGODA_CPUS": "0"}, "PAGODA_CPUS is '0'; it must be a whole number of at least 1"),
    ({"PAGODA_LOG_LEVEL": "loud"}, "PAGODA_LOG_LEVEL is 'loud'; it may be debug, info, warning, error"),
    ({"PAGODA_BIND_HOST": "0.0.0.0"}, "PAGODA_BIND_HOST 0.0.0.0 is reachable from other machines: set PAGODA_SESSION_TOKEN"),
    ({"PAGODA_ENGINE": "{"}, "PAGODA_ENGINE is not JSON"),
    ({"PAGODA_ENGINE": "[]"}, "PAGODA_ENGINE must be a JSON object"),
    (engine(maxModelLength=1), "PAGODA_ENGINE.maxModelLength is not a field this engine knows; it knows adapters, attention, backend"),
    (engine(maxModelLen="2048"), 'PAGODA_ENGINE.maxModelLen is "2048"; it must be a whole number'),
    (engine(maxRunning=True), "PAGODA_ENGINE.maxRunning is true; it must be a whole number"),
    (engine(prefixCaching=1), "PAGODA_ENGINE.prefixCaching is 1; it must be true or false"),
    (engine(dtype="int4"), 'PAGODA_ENGINE.dtype is "int4"; this engine has auto, bf16, fp16, fp32'),
    (engine(load="later"), 'PAGODA_ENGINE.load is "later"; this engine has eager, lazy, warm'),
    (engine(attention="paged"), 'PAGODA_ENGINE.attention is "paged"; this engine has auto, triton, flash, native, sdpa, eager'),
    (engine(quantization="int3"), 'PAGODA_ENGINE.quantization is "int3"; this engine has none, int8, int4, fp8'),
    (engine(speculative={"method": "eagle"}), 'PAGODA_ENGINE.speculative.method is "eagle"; this engine has none, ngram, suffix, draft'),
    (engine(speculative={"tokens": 17}), "PAGODA_ENGINE.speculative.tokens is 17; it must be a whole number from 1 to 16"),
    (engine(speculative={"draft": 3}), "PAGODA_ENGINE.speculative.draft is 3; it must be a model's source, such as builtin://NAME"),
    (engine(speculative={"draft": "hf://org/draft"}), "PAGODA_ENGINE.speculative.draft hf://org/draft: a worker reads folders only"),
    (engine(speculative={"draft": "builtin://none"}), "PAGODA_ENGINE.speculative.draft builtin://none: this worker ships builtin://tiny"),
    (engine(kvCache={"dtype": "int4"}), 'PAGODA_ENGINE.kvCache.dtype is "int4"; this engine has auto, int8, fp8'),
    (engine(kvCache={"swap": "4GB"}), 'PAGODA_ENGINE.kvCache.swap is "4GB"; it must be bytes, such as 0, 4294967296 or "4Gi"'),
    (engine(kvCache={"hostTier": True}), "PAGODA_ENGINE.kvCache.hostTier is true"),
    (engine(kvCache={"hostTier": -1}), "PAGODA_ENGINE.kvCache.hostTier is -1"),
    (engine(kvCache={"size": 1}), "PAGODA_ENGINE.kvCache.size is not a field"),
    (engine(tensorParallel=0), "PAGODA_ENGINE.tensorParallel is 0; it must be a whole number from 1 to 64"),
    (engine(pipelineParallel=2), "PAGODA_ENGINE.pipelineParallel is 2; this engine has 1 so far"),
    (engine(backend="vllm"), 'PAGODA_ENGINE.backend is "vllm"; this engine has "pagoda" so far'),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_setting_is_one_line_naming_it(change: dict[str, str], message: str):
    with pytest.raises(ConfigError) as refusal:
        parse_settings({**MINIMAL, **change})
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_token(host: str):
    assert parse_settings({**MINIMAL, "PAGODA_BIND_HOST": host}).bind_host == host


def test_a_reachable_bind_takes_a_token():
    assert parse_settings({**MINIMAL, "PAGODA_BIND_HOST": "0.0.0.0", "PAGODA_SESSION_TOKEN": "s"}).session_token == "s"


@pytest.mark.parametrize("name", ["PAGODA_HOME", "PAGODA_RUN_ID", "PAGODA_REQUIRE_ALL", "PAGODA_KUBE_BIN", "PAGODA_POD_NAME", "HOME"])
def test_variables_of_others_are_tolerated(name: str):
    parse_settings({**MINIMAL, name: "x"})
