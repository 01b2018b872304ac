"""The same table of manifests as for the parser, and what people do with the stored object, on a real API server.

CEL is compiled, priced and run by the server alone: that our expressions mean what the parser does is seen here.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_server import ALL_KINDS, ApiServer
from cases import EXAMPLES, TINY, ManifestCase, inference_model, manifest_cases

ROOT = "<nil>"
"""The server's name for a rule over the whole object: there ours name the field themselves."""
BLOCKED = "some validation rules were not checked because the object was invalid"
SAID_OF = re.compile(r"[a-z][\w.]*(?=: )")
UNKNOWN = re.compile(r'(?:unknown|duplicate) field "([^"]+)"')


def refused(answer: Any) -> list[tuple[str, str]]:
    """(field, what was said of it) of an answer that refuses."""
    status = answer.json()
    causes = [(cause.get("field", "").removeprefix("."), cause["message"]) for cause in status.get("details", {}).get("causes", ())]
    # What is said of the whole object begins with the field that it is about.
    causes = [(_said_of(message) if field == ROOT else field, message) for field, message in causes]
    unknown = [(field, "unknown") for field in UNKNOWN.findall(status["message"])]
    return [cause for cause in causes if BLOCKED not in cause[1]] + unknown


def _said_of(message: str) -> str:
    return next((field for field in SAID_OF.findall(message) if field.startswith(("metadata.", "spec."))), "metadata.name")


CASES = [case for case in manifest_cases() if not case.skipped]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_api_server_says_what_the_parser_says(case: ManifestCase, api_server: ApiServer) -> None:
    document = {**case.document, "metadata": {"namespace": "default", **case.document["metadata"]}}
    answer = api_server.tried(document)
    if not case.expect:
        assert answer.status_code == 201, answer.text
        return
    assert answer.status_code in (400, 422), answer.text
    said = refused(answer)
    fields = {field for field, _ in said}
    if case.own:
        # One field of the wrong shape is enough for the server: it does not ask the rules any more, nor decode the rest.
        assert fields, answer.text
        assert fields <= {field for field, _ in case.expect}, answer.text
        return
    assert fields == {field for field, _ in case.expect}
    for field, message in case.expect:
        assert any(message in words for where, words in said if where == field), answer.text


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_accepted(example: Path, api_server: ApiServer) -> None:
    document = yaml.safe_load(example.read_text())
    assert api_server.tried(document).status_code == 201


def path_of_stored(api_server: ApiServer, name: str, scaling: dict[str, Any]) -> str:
    document = inference_model(name, {"model": {"source": TINY}, "scaling": scaling}, stored=False)
    api_server.apply({**document, "metadata": {"name": name, "namespace": "default"}}, "kubectl")
    return ALL_KINDS["InferenceModel"].path("default", name)


def test_kubectl_scale_sets_the_replicas_of_a_model_that_is_scaled_from_outside(api_server: ApiServer) -> None:
    path = path_of_stored(api_server, "outside", {"mode": "external", "replicas": 1})
    api_server.patch(f"{path}/status", {"status": {"replicas": 2, "selector": "pagoda.dev/model=outside"}})
    answer = api_server.patch(f"{path}/scale", {"spec": {"replicas": 3}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["spec"]["replicas"] == 3
    assert answer.json()["status"] == {"replicas": 2, "selector": "pagoda.dev/model=outside"}


def test_kubectl_scale_is_refused_with_our_sentence_where_pagoda_scales(api_server: ApiServer) -> None:
    answer = api_server.patch(f"{path_of_stored(api_server, 'inside', {})}/scale", {"spec": {"replicas": 3}})
    assert answer.status_code == 422
    assert "replicas is set from outside: write mode: external beside it" in answer.text


def test_a_model_goes_back_from_outside_as_the_sentence_says(api_server: ApiServer) -> None:
    path = path_of_stored(api_server, "back", {"mode": "external"})
    api_server.patch(f"{path}/scale", {"spec": {"replicas": 3}})
    assert api_server.patch(path, {"spec": {"scaling": {"mode": "auto", "max": 3}}}).status_code == 422
    assert api_server.patch(path, {"spec": {"scaling": {"mode": "auto", "max": 3, "replicas": None}}}).status_code == 200


def test_the_canarys_beat_is_stored(api_server: ApiServer) -> None:
    answer = api_server.patch(f"{path_of_stored(api_server, 'canary', {})}/status", {"status": {"beat": 1_790_000_000}})
    assert answer.json()["status"]["beat"] == 1_790_000_000
