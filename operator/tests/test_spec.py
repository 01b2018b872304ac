from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
import yaml
from cases import REPOSITORY, TINY, ManifestCase, inference_model, manifest_cases
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.errors import InvalidManifest, InvalidQuantity, Problem
from pagoda_operator.quantities import format_bytes, format_cores, parse_quantity
from pagoda_operator.rules import FIELDS, NOT_YET
from pagoda_operator.spec import Engine, KvCache, Resources, Routing, Scaling, key_of, parse


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
    tried = {field for case in manifest_cases() for field, message in case.expect if "not available in this version; remove" in message}
    assert tried == NOT_YET


def test_the_quickstart_parses_to_what_it_says() -> None:
    model = parse(yaml.safe_load((REPOSITORY / "docs/quickstart/inferencemodel.yaml").read_text()))
    assert (model.name, model.namespace, model.key) == ("tiny", "default", "default/tiny")
    assert (model.spec.model.scheme, model.spec.model.location) == ("builtin", "tiny")
    assert model.spec.engine == Engine(max_model_len=2048)
    assert model.spec.resources == Resources(cpu_cores=2.0, memory_bytes=4 * 2**30)
    assert model.spec.scaling == Scaling(min=1, max=1)
    assert model.spec.served_names == ("tiny",)


def test_every_written_field_reaches_the_spec() -> None:
    spec = parse(
        inference_model(
            "chat",
            {
                "model": {"source": "file:///models/chat"},
                "servedNames": ["a", "b"],
                "engine": {
                    "dtype": "fp32",
                    "attention": "eager",
                    "maxModelLen": 100,
                    "maxBatchTokens": 200,
                    "maxRunning": 3,
                    "prefixCaching": False,
                    "kvCache": {"blockSize": 8},
                },
                "resources": {"gpus": 1, "gpuResource": "amd.com/gpu", "cpu": "500m", "memory": "64Mi"},
                "scaling": {"min": 3, "max": 3},
                "routing": {"maxQueueTokens": 7},
            },
        )
    ).spec
    assert spec.model.location == "/models/chat"
    assert spec.served_names == ("a", "b")
    assert spec.engine == Engine(
        dtype="fp32",
        attention="eager",
        max_model_len=100,
        max_batch_tokens=200,
        max_running=3,
        prefix_caching=False,
        kv_cache=KvCache(block_size=8),
    )
    assert spec.resources == Resources(gpus=1, gpu_resource="amd.com/gpu", cpu_cores=0.5, memory_bytes=64 * 2**20)
    assert spec.scaling == Scaling(min=3, max=3)
    assert spec.routing == Routing(max_queue_tokens=7)


def test_max_follows_min_when_left_out() -> None:
    assert parse(inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 4}})).spec.scaling == Scaling(min=4, max=4)


def test_the_default_variant_carries_the_models_own_settings() -> None:
    model = parse(inference_model(spec={"model": {"source": TINY}, "scaling": {"min": 2}}))
    (variant,) = model.variants
    assert (variant.name, variant.weight, variant.scaling) == ("default", 100, Scaling(min=2, max=2))
    assert (variant.engine, variant.resources) == (model.spec.engine, model.spec.resources)


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
