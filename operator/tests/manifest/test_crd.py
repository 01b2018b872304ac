"""The CRD states the same fields, kinds, bounds and sentences as the parser's table, and people's good manifests fit its schema."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import EXAMPLES, NOW, REPOSITORY, SETTINGS, ManifestCase, inference_model, manifest_cases, router, settled, worker, world

from pagoda_operator.manifest.rules.predicates import KIND_MESSAGES, Field
from pagoda_operator.manifest.rules.table import FIELDS, NAME, OWN_DRAFTS, OWN_FALLBACK
from pagoda_operator.manifest.validate import API_VERSION, KIND
from pagoda_operator.observed.world import Capacity, Observed
from pagoda_operator.plan.plan import plan
from pagoda_operator.status.model_status import model_status

Schema = Mapping[str, Any]
CRD = yaml.safe_load((REPOSITORY / "crds/inferencemodels.yaml").read_text())
VERSION = CRD["spec"]["versions"][0]
ROOT: Schema = VERSION["schema"]["openAPIV3Schema"]
COLUMNS = VERSION["additionalPrinterColumns"]
TYPES = {"object": "object", "array": "list", "string": "string", "integer": "integer", "number": "number", "boolean": "boolean"}


def fields_of(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from fields_of(below, f"{path}.{name}")
    if "items" in schema:
        yield from fields_of(schema["items"], f"{path}[]")


ROOT_OF_COLUMNS = {part: ROOT["properties"][part] for part in ("spec", "status")}
SPEC_FIELDS = dict(fields_of(ROOT["properties"]["spec"], "spec"))


def rules_of(schema: Schema) -> list[Schema]:
    return list(schema.get("x-kubernetes-validations", []))


def shape_problems(schema: Schema, value: Any, path: str) -> Iterator[str]:
    """What the API server's structural validation would refuse: unknown fields, wrong types, missing fields, sizes."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, str | int):
            yield f"{path}: not an integer or a string"
        return
    expected = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}[schema["type"]]
    if not isinstance(value, expected) or (schema["type"] in ("integer", "number") and isinstance(value, bool)):
        yield f"{path}: not of type {schema['type']}"
        return
    if schema["type"] == "object" and "properties" in schema:
        yield from (f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value)
        yield from (f"{path}.{name}: unknown" for name in value if name not in schema["properties"])
        for name in value.keys() & schema["properties"].keys():
            yield from shape_problems(schema["properties"][name], value[name], f"{path}.{name}")
    if schema["type"] == "array":
        for i, item in enumerate(value):
            yield from shape_problems(schema["items"], item, f"{path}[{i}]")
    limit = schema.get("maxLength", schema.get("maxItems"))
    if limit is not None and len(value) > limit:
        yield f"{path}: too long"


def test_the_crd_and_the_parser_know_the_same_fields() -> None:
    assert set(SPEC_FIELDS) == set(FIELDS)


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_a_field_has_one_kind_bound_and_set_of_sentences(path: str) -> None:
    schema, field = SPEC_FIELDS[path], FIELDS[path]
    kind = "quantity" if schema.get("x-kubernetes-int-or-string") else TYPES[schema["type"]]
    assert kind == field.kind
    assert schema.get("maxLength", schema.get("maxItems")) == field.max_size
    assert [rule["message"] for rule in rules_of(schema)] == [rule.message for rule in field.rules]


@pytest.mark.parametrize("path", sorted(path for path in FIELDS if not path.endswith("[]")))
def test_a_field_is_required_in_both_or_in_neither(path: str) -> None:
    parent, _, name = path.rpartition(".")
    schema = SPEC_FIELDS[parent] if parent else ROOT
    assert (name in schema.get("required", [])) == FIELDS[path].required


def test_what_is_said_of_the_whole_object_is_its_name_and_that_another_model_is_another() -> None:
    assert [rule["message"] for rule in rules_of(ROOT)] == [NAME.message, OWN_DRAFTS, OWN_FALLBACK]


def test_no_field_is_ruled_by_words_that_kubectl_would_choose_itself() -> None:
    forbidden = {"enum", "pattern", "minimum", "maximum", "minItems", "minLength", "default"}
    assert [path for path, schema in SPEC_FIELDS.items() if forbidden & schema.keys()] == []


def test_every_rule_over_text_or_a_list_has_a_bounded_cost() -> None:
    def bounded(field: Field) -> bool:
        return field.kind not in ("string", "list", "quantity") or field.max_size is not None

    assert [path for path, field in FIELDS.items() if not bounded(field)] == []


def test_the_crd_is_the_kind_that_the_parser_reads() -> None:
    spec = CRD["spec"]
    assert f"{spec['group']}/{VERSION['name']}" == API_VERSION
    assert spec["names"]["kind"] == KIND
    assert CRD["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["names"]["shortNames"] == ["im"]
    assert VERSION["subresources"].keys() == {"status", "scale"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_fit_the_schema(example: Path) -> None:
    document = yaml.safe_load(example.read_text())
    assert list(shape_problems(ROOT["properties"]["spec"], document["spec"], "spec")) == []


@pytest.mark.parametrize("case", [case for case in manifest_cases() if "spec" in case.document], ids=str)
def test_the_schema_refuses_what_the_parser_refuses_in_its_own_words_and_nothing_else(case: ManifestCase) -> None:
    refused = {line.partition(":")[0] for line in shape_problems(ROOT["properties"]["spec"], case.document["spec"], "spec")}
    assert refused == {field for field in case.own if field.startswith("spec.")}


def test_the_table_marks_a_sentence_as_the_parsers_own_only_where_the_crd_lacks_it() -> None:
    shared = {rule["message"] for schema in SPEC_FIELDS.values() for rule in rules_of(schema)}
    marked = {message for case in manifest_cases() for field, message in case.expect if field in case.own and field.startswith("spec")}
    assert marked & shared == set()
    assert set(KIND_MESSAGES.values()) - {"write a whole number or a quoted quantity"} <= marked | {"write a list"}


def running(document: dict[str, Any]) -> Observed:
    observed = settled([document])
    return world(*observed.objects.values(), pods=[router(observed), worker(observed)])


def printed(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for name in path.removeprefix(".").split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def test_kubectl_get_shows_whether_it_answers_where_and_with_how_many() -> None:
    document = inference_model()
    observed = running(document)
    shown = document | {"status": model_status(document, plan([document], observed, SETTINGS), observed)}
    columns = {column["name"]: printed(shown, column["jsonPath"]) for column in COLUMNS if "priority" not in column}
    assert columns == {
        "Ready": "True",
        "Model": "builtin://tiny",
        "Replicas": 1,
        "Endpoint": "http://127.0.0.1:8000/v1",
        "Rollout": "Settled",
        "Age": "2026-03-01T12:00:00Z",
    }


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column["name"])
def test_every_column_shows_a_field_that_there_is_and_has_its_type(column: Schema) -> None:
    schema: Schema = {"properties": {"metadata": {"properties": {"creationTimestamp": {"type": "date"}}}, **ROOT_OF_COLUMNS}}
    for name in column["jsonPath"].removeprefix(".").split("."):
        schema = schema["properties"][name]
    assert schema["type"] == column["type"]


def test_the_scale_subresource_reads_fields_that_there_are() -> None:
    scale = VERSION["subresources"]["scale"]
    assert scale["specReplicasPath"].removeprefix(".") in FIELDS
    status = dict(fields_of(ROOT["properties"]["status"], ".status"))
    assert {scale["statusReplicasPath"], scale["labelSelectorPath"]} <= status.keys()


def statuses() -> Iterator[dict[str, Any]]:
    """From nothing to all that can be told."""
    document = inference_model()
    observed = settled([document])
    capacity = Capacity(kv_tokens=4096, max_model_len=2048, prefill_tokens_per_s=900.5, decode_tokens_per_s=40.25)
    milestones = dict.fromkeys(("created_at", "scheduled_at", "image_at", "weights_at", "engine_at", "routed_at"), NOW)
    loading = worker(observed, ready=False, progress=0.5, reason="WeightsDownload", bytes_done=1, bytes_total=2)
    decision = {"time": "2026-03-01T12:00:00Z", "from": 1, "to": 2, "reason": "9000 tokens wait", "variant": "default"}
    in_vain = worker(observed, ready=False, reason="InvalidImageName")
    for pods in ([], [loading], [in_vain], [router(observed), worker(observed, capacity=capacity, **milestones)]):
        seen = world(*observed.objects.values(), pods=pods)
        yield model_status(document, plan([document], seen, SETTINGS), seen, [decision])


def test_the_status_that_we_write_fits_the_schema() -> None:
    for status in statuses():
        assert list(shape_problems(ROOT["properties"]["status"], status, "status")) == []


def test_every_field_of_the_status_is_written_sometime() -> None:
    def written(value: Any, path: str) -> Iterator[str]:
        yield path
        if isinstance(value, dict):
            yield from (one for name, below in value.items() for one in written(below, f"{path}.{name}"))
        elif isinstance(value, list):
            yield from (one for below in value for one in written(below, f"{path}[]"))

    found = {path for status in statuses() for path in written(status, "status")}
    assert dict(fields_of(ROOT["properties"]["status"], "status")).keys() - found == {"status.beat"}
