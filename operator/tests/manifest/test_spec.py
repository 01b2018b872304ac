import re
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import EXAMPLES, REPOSITORY, TINY, ManifestCase, inference_model, manifest_cases
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.errors import InvalidManifest, InvalidQuantity, Problem
from pagoda_operator.manifest.engine import Engine, KvCache, Resources, Speculative
from pagoda_operator.manifest.promises import Cost, Slo
from pagoda_operator.manifest.quantities import format_bytes, format_cores, parse_duration, parse_quantity
from pagoda_operator.manifest.routing import Routing
from pagoda_operator.manifest.rules.table import FIELDS, NOT_YET
from pagoda_operator.manifest.scaling import Rollout, Scaling, ScalingTarget
from pagoda_operator.manifest.source import Cache, ModelSource, SecretKey
from pagoda_operator.manifest.spec import key_of, parse


def problems(document: dict[str, Any]) -> tuple[Problem, ...]:
    try:
        parse(document)
    except InvalidManifest as error:
        return error.problems
    return ()


@pytest.mark.parametrize("case", manifest_cases(), ids=str)
def test_a_manifest_gets_exactly_the_sentences_of_the_table(case: ManifestCase) -> None:
    found = [(problem.field, problem.message) for problem in problems(case.document)]
    assert sorted(found) == sorted(case.expect)


def test_the_table_tries_every_rule() -> None:
    tried = {message for case in manifest_cases() for _, message in case.expect}
    assert [rule.message for field in FIELDS.values() for rule in field.rules if rule.message not in tried] == []


def test_the_table_tries_every_field_that_is_not_available_yet() -> None:
    refused = {field for case in manifest_cases() for field, message in case.expect if "not available in this version; remove" in message}
    assert {re.sub(r"\[[0-9]+]", "[]", field) for field in refused} == NOT_YET


def test_the_quickstart_parses_to_what_it_says() -> None:
    model = parse(yaml.safe_load((REPOSITORY / "docs/quickstart/inferencemodel.yaml").read_text()))
    assert (model.name, model.namespace, model.key) == ("tiny", "default", "default/tiny")
    assert (model.spec.model.scheme, model.spec.model.location) == ("builtin", "tiny")
    assert model.spec.engine == Engine(max_model_len=2048)
    assert model.spec.resources == Resources(cpu_cores=0.5, memory_bytes=2 * 2**30)
    assert model.spec.scaling == Scaling(min=1, max=1)
    assert model.spec.served_names == ("tiny",)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_parse(example: Path) -> None:
    assert parse(yaml.safe_load(example.read_text())).name


def test_every_written_field_reaches_the_spec() -> None:
    spec = parse(
        inference_model(
            "chat",
            {
                "model": {
                    "source": "hf://org/chat",
                    "revision": "v1",
                    "endpoint": "https://hub.example",
                    "tokenSecretRef": {"name": "hub"},
                    "cache": {"size": "1.5Gi", "storageClass": "fast", "accessMode": "ReadWriteOnce"},
                },
                "servedNames": ["a", "b"],
                "engine": {
                    "dtype": "fp32",
                    "attention": "eager",
                    "maxModelLen": 100,
                    "maxBatchTokens": 200,
                    "maxRunning": 3,
                    "load": "warm",
                    "prefixCaching": False,
                    "tensorParallel": 2,
                    "quantization": "int4",
                    "longPrefillTokens": 64,
                    "speculative": {"method": "draft", "tokens": 6, "draft": "builtin://tiny-draft"},
                    "kvCache": {"blockSize": 8, "dtype": "int8", "swap": "4Gi", "hostTier": "1.5Gi"},
                },
                "resources": {"gpus": 2, "gpuResource": "amd.com/gpu", "cpu": "500m", "memory": "64Mi"},
                "scaling": {
                    "min": 0,
                    "max": 3,
                    "mode": "external",
                    "replicas": 2,
                    "idleSeconds": 30,
                    "stableSeconds": 5,
                    "target": {"queuedTokens": 9, "kvUsePercent": 50, "ttft": "250ms"},
                },
                "rollout": {"strategy": "replace"},
                "routing": {
                    "fallback": "other",
                    "fallbackAfter": "3s",
                    "maxQueueTokens": 7,
                    "maxWaiting": 8,
                    "policy": "prefix",
                    "wakeTimeout": "2m",
                },
            },
        )
    ).spec
    assert spec.model == ModelSource(
        source="hf://org/chat",
        revision="v1",
        endpoint="https://hub.example",
        token_secret=SecretKey(name="hub", key="token"),
        cache=Cache(size_bytes=3 * 2**29, storage_class="fast", access_mode="ReadWriteOnce"),
    )
    assert (spec.model.scheme, spec.model.location, spec.model.fetched) == ("hf", "org/chat", True)
    assert spec.served_names == ("a", "b")
    assert spec.engine == Engine(
        dtype="fp32",
        attention="eager",
        max_model_len=100,
        max_batch_tokens=200,
        max_running=3,
        load="warm",
        prefix_caching=False,
        tensor_parallel=2,
        quantization="int4",
        long_prefill_tokens=64,
        speculative=Speculative(method="draft", tokens=6, draft="builtin://tiny-draft"),
        kv_cache=KvCache(block_size=8, dtype="int8", swap_bytes=4 * 2**30, host_tier_bytes=3 * 2**29),
    )
    assert spec.resources == Resources(gpus=2, gpu_resource="amd.com/gpu", cpu_cores=0.5, memory_bytes=64 * 2**20)
    target = ScalingTarget(queued_tokens=9, kv_use_percent=50, ttft_s=0.25)
    assert spec.scaling == Scaling(min=0, max=3, mode="external", replicas=2, idle_s=30, stable_s=5, target=target)
    assert spec.rollout == Rollout(strategy="replace")
    assert spec.routing == Routing(
        fallback="other", fallback_after_s=3.0, max_queue_tokens=7, max_waiting=8, policy="prefix", wake_timeout_s=120.0
    )


@pytest.mark.parametrize(
    ("written", "read"), [({"batchInvariant": True}, Engine(batch_invariant=True)), ({"compile": True}, Engine(compile=True))]
)
def test_switches_that_exclude_others_reach_the_spec(written: dict[str, Any], read: Engine) -> None:
    assert parse(inference_model(spec={"model": {"source": TINY}, "engine": written})).spec.engine == read


def test_a_bucket_has_credentials_and_a_claim_that_exists() -> None:
    source = {"source": "s3://bucket/chat", "credentialsSecretRef": {"name": "s3"}, "cache": {"claim": "models"}}
    spec = parse(inference_model(spec={"model": source})).spec
    assert spec.model == ModelSource(source="s3://bucket/chat", credentials_secret="s3", cache=Cache(claim="models"))


@pytest.mark.parametrize(
    ("written", "least", "most", "at_first", "fixed"),
    [
        ({}, 1, 1, 1, 1),
        ({"min": 4}, 4, 4, 4, 4),
        ({"min": 0}, 0, 1, 0, None),
        ({"max": 4}, 1, 4, 1, None),
        ({"min": 2, "max": 2}, 2, 2, 2, 2),
        ({"mode": "external", "min": 2}, 2, 2, 2, 2),
        ({"mode": "external", "min": 2, "max": 9, "replicas": 0}, 2, 9, 0, 0),
    ],
    ids=str,
)
def test_bounds_that_are_left_out_follow_each_other(written: dict[str, Any], least: int, most: int, at_first: int, fixed: Any) -> None:
    scaling = parse(inference_model(spec={"model": {"source": TINY}, "scaling": written})).spec.scaling
    assert (scaling.min, scaling.max, scaling.at_first, scaling.fixed) == (least, most, at_first, fixed)


def test_the_default_variant_carries_the_models_own_settings() -> None:
    model = parse(inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 2}}))
    (variant,) = model.variants
    assert (variant.name, variant.weight, variant.scaling) == ("default", 100, Scaling(min=2, max=2))
    assert (variant.engine, variant.resources) == (model.spec.engine, model.spec.resources)


SECTIONS: dict[str, Any] = {
    "engine": st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["fp32", "bf16"]),
            "maxRunning": st.integers(1, 9),
            "kvCache": st.fixed_dictionaries({}, optional={"blockSize": st.sampled_from([8, 16])}),
        },
    ),
    "resources": st.fixed_dictionaries({}, optional={"gpus": st.integers(0, 1), "cpu": st.sampled_from(["1", "500m"])}),
    "scaling": st.fixed_dictionaries(
        {}, optional={"max": st.integers(1, 9), "target": st.fixed_dictionaries({}, optional={"queuedTokens": st.integers(1, 9)})}
    ),
}
OVERRIDES = st.fixed_dictionaries({}, optional=SECTIONS)


@given(OVERRIDES, OVERRIDES)
def test_a_variant_is_the_spec_with_its_own_words_over_it(own: dict[str, Any], override: dict[str, Any]) -> None:
    def flat(section: dict[str, Any], path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in section.items():
            found |= flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
        return found

    def nested(fields: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, value in fields.items():
            *parents, name = path.split(".")
            place = found
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = value
        return found

    (variant,) = parse(inference_model(spec={"model": {"source": TINY}, **own, "variants": [{"name": "a", **override}]})).variants
    (alone,) = parse(inference_model(spec={"model": {"source": TINY}, **nested(flat(own) | flat(override))})).variants
    assert (variant.engine, variant.resources, variant.scaling) == (alone.engine, alone.resources, alone.scaling)
    assert (variant.name, variant.weight) == ("a", 100)


def test_overriding_changes_neither_the_spec_nor_the_other_variants() -> None:
    spec = {"model": {"source": TINY}, "engine": {"kvCache": {"blockSize": 8}}}
    spec["variants"] = [{"name": "a", "weight": 1, "engine": {"kvCache": {"blockSize": 32}}}, {"name": "b", "weight": 0}]
    model = parse(inference_model(spec=spec))
    assert [variant.engine.kv_cache.block_size for variant in model.variants] == [32, 8]
    assert model.spec.engine.kv_cache.block_size == 8
    assert model.document["spec"]["engine"] == {"kvCache": {"blockSize": 8}}


@pytest.mark.parametrize(("written", "seconds"), [("1ms", 0.001), ("500ms", 0.5), ("2s", 2), ("5m", 300), ("1h", 3600), ("090s", 90)])
def test_times_are_read_with_their_unit(written: str, seconds: float) -> None:
    assert float(parse_duration(written)) == seconds


@pytest.mark.parametrize("written", ["", "5", "s", "1.5s", "-1s", "1m30s", "1 s", "1S", "1d", "٣s", "1s\n", "1234567s"])
def test_what_is_no_time_is_refused(written: str) -> None:
    with pytest.raises(InvalidQuantity, match="is not a time: write a whole number with a unit"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "moment"),
    [
        ("2026-03-01T12:00:00Z", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        ("2026-03-01T13:00:00+01:00", datetime(2026, 3, 1, 12, tzinfo=UTC)),
        (datetime(2026, 3, 1, 12), datetime(2026, 3, 1, 12, tzinfo=UTC)),  # as YAML reads an unquoted time
        (None, None),
    ],
)
def test_the_creation_time_is_an_instant(written: object, moment: datetime | None) -> None:
    document = inference_model()
    document["metadata"]["creationTimestamp"] = written
    assert parse(document).created == moment


def test_a_creation_time_that_is_none_is_refused_by_its_field() -> None:
    document = inference_model()
    document["metadata"]["creationTimestamp"] = "yesterday"
    assert [problem.field for problem in problems(document)] == ["metadata.creationTimestamp"]


def test_a_line_about_a_problem_shows_what_was_written() -> None:
    (problem,) = problems(inference_model(spec={"model": {"source": TINY}, "engine": {"dtype": "int8"}}))
    assert str(problem) == 'spec.engine.dtype: "int8" was given: write auto, bf16, fp16 or fp32'


def test_the_whole_error_is_one_line_that_names_the_object() -> None:
    with pytest.raises(InvalidManifest, match=r"^InferenceModel chat: spec\.model\.source: .*; spec\.engine\.dtype: [^\n]*$"):
        parse(inference_model(spec={"model": {"source": "x\ny" * 99}, "engine": {"dtype": "int8"}}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["spec", "model", "engine", "name", "x\ny"]), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELD_NAMES = sorted({path.rpartition(".")[2] for path in FIELDS if not path.endswith("[]")})


@given(st.dictionaries(st.sampled_from(["apiVersion", "kind", "metadata", "spec", "x\ny"]), json_values))
def test_any_document_is_parsed_or_refused_with_problems(document: dict[str, Any]) -> None:
    assert isinstance(key_of(document), str)
    found = problems(document)
    assert all("\n" not in str(problem) for problem in found)
    assert found or document["metadata"]["name"] == parse(document).name


@given(st.dictionaries(st.sampled_from(FIELD_NAMES), json_values | st.dictionaries(st.sampled_from(FIELD_NAMES), json_values, max_size=3)))
def test_any_spec_is_parsed_or_refused_with_problems_below_spec(spec: dict[str, Any]) -> None:
    assert all(problem.field.startswith("spec") for problem in problems(inference_model(spec=spec)))


@pytest.mark.parametrize(
    ("written", "parsed", "indicators"),
    [
        ({}, Slo(), ("availability",)),
        ({"ttft": "500ms"}, Slo(ttft_s=0.5), ("availability", "ttft")),
        (
            {"ttft": "2s", "tpot": "50ms", "objective": "99.9%"},
            Slo(ttft_s=2, tpot_s=0.05, objective=Fraction(999, 1000)),
            ("availability", "ttft", "tpot"),
        ),
    ],
    ids=str,
)
def test_a_promise_is_read_exactly(written: dict[str, Any], parsed: Slo, indicators: tuple[str, ...]) -> None:
    found = parse(inference_model(spec={"model": {"source": TINY}, "slo": written})).spec.slo
    assert found == parsed
    assert found is not None
    assert found.indicators == indicators


def test_prices_are_read_whole_or_with_decimals() -> None:
    model = parse(inference_model(spec={"model": {"source": TINY}, "cost": {"gpuHourUsd": 3, "workerHourUsd": 0.4}}))
    assert model.spec.cost == Cost(gpu_hour_usd=3.0, worker_hour_usd=0.4)
    model = parse(inference_model(spec={"model": {"source": TINY}, "cost": {"millionInputUsd": 0.15, "millionOutputUsd": 1}}))
    assert model.spec.cost == Cost(million_input_usd=0.15, million_output_usd=1.0)


def test_without_a_word_nothing_is_promised_and_nothing_costs() -> None:
    spec = parse(inference_model()).spec
    assert (spec.slo, spec.cost) == (None, None)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8", 8),
        (8, 8),
        ("500m", Fraction(1, 2)),
        ("1.5", Fraction(3, 2)),
        (".5", Fraction(1, 2)),
        ("48Gi", 48 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("48G", 48 * 10**9),
        ("2k", 2000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("12e-1", Fraction(6, 5)),
        ("100u", Fraction(1, 10000)),
        ("-1", -1),
    ],
)
def test_quantities_are_read_exactly(written: str | int, value: Fraction | int) -> None:
    assert parse_quantity(written) == value


@pytest.mark.parametrize("written", ["", "x", "8 Gi", "16GB", "8K", "1e", "0x10", "1,5", "8gi", "١", "1\n", True, "1e999"])
def test_what_is_no_quantity_is_refused(written: Any) -> None:
    with pytest.raises(InvalidQuantity, match="is not a quantity: write a number with a unit"):
        parse_quantity(written)


@given(st.integers(min_value=1, max_value=2**60))
def test_bytes_written_out_read_back_the_same(count: int) -> None:
    assert parse_quantity(format_bytes(count)) == count


@given(st.integers(min_value=1, max_value=10**6))
def test_cores_written_out_read_back_to_the_thousandth(millicores: int) -> None:
    assert parse_quantity(format_cores(millicores / 1000)) == Fraction(millicores, 1000)


@pytest.mark.parametrize(("cores", "written"), [(2.0, "2"), (0.5, "500m"), (1.25, "1250m"), (0.001, "1m")])
def test_cores_are_written_as_the_api_server_stores_them(cores: float, written: str) -> None:
    assert format_cores(cores) == written


@pytest.mark.parametrize(("count", "written"), [(4 * 2**30, "4Gi"), (1500 * 2**20, "1500Mi"), (1_500_000_001, "1500000001"), (10**9, "1G")])
def test_bytes_are_written_as_the_api_server_stores_them(count: int, written: str) -> None:
    assert format_bytes(count) == written
