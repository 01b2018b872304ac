"""From files to documents: every problem in a line that names its file and field, before anything is started."""

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from stacks import model_folder

from pagoda_operator.local.sources import SourceMissing, check_adapter, resolve_source
from pagoda_operator.terminal.errors import CommandError
from pagoda_operator.terminal.model_argument import as_yaml, manifest_for
from pagoda_operator.terminal.submission import check, load

HEAD = "apiVersion: pagoda.dev/v1alpha1\nkind: InferenceModel\nmetadata: {name: m}\n"
GOOD = HEAD + "spec: {model: {source: builtin://tiny}}\n"


def write(folder: Path, text: str, name: str = "m.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_the_quickstart_loads() -> None:
    quickstart = Path(__file__).parents[3] / "docs/quickstart/inferencemodel.yaml"
    [document] = load([str(quickstart)], {})
    assert document["metadata"] == {"name": "tiny", "namespace": "default"}


def test_several_files_and_documents_load_in_order(tmp_path: Path) -> None:
    both = write(tmp_path, GOOD + "---\n" + GOOD.replace("name: m", "name: n") + "---\n")
    third = write(tmp_path, GOOD.replace("name: m", "name: o"), "o.yaml")
    assert [document["metadata"]["name"] for document in load([both, third], {})] == ["m", "n", "o"]


BROKEN = {
    "not YAML": ("a: [", ["it is not YAML", "line 1"]),
    "a tag that runs code": ("!!python/object/apply:os.system [ls]", ["it is not YAML"]),
    "a list": ("- a", ["a manifest is an object"]),
    "empty": ("---\n", ["there is no InferenceModel"]),
    "unknown kind": ("kind: Deployment\n", ["kind 'Deployment' is not known here", "InferenceModel"]),
    "two problems": (
        HEAD + "spec: {model: {source: builtin://tiny}, engine: {dtype: fp7, maxRuning: 3}}",
        ["m.yaml: spec.engine.dtype", "m.yaml: spec.engine.maxRuning", "maxRunning"],
    ),
    "no spec": (HEAD, ["m.yaml: spec"]),
    "missing folder": (HEAD + "spec: {model: {source: file://nowhere}}", ["m.yaml: spec.model.source", "/nowhere"]),
    "folder without a model": (HEAD + "spec: {model: {source: file://.}}", ["spec.model.source", "no config.json"]),
    "a claim": (HEAD + "spec: {model: {source: pvc://claim/folder}}", ["spec.model.source", "one machine has no PersistentVolumeClaims"]),
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_told_in_lines_that_name_file_and_field(tmp_path: Path, text: str, expected: list[str]) -> None:
    file = write(tmp_path, text)
    with pytest.raises(CommandError) as caught:
        load([file], {"HF_HOME": str(tmp_path)})
    for part in expected:
        assert part in str(caught.value)
    assert all(len(line) < 400 for line in str(caught.value).splitlines())


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"none\.yaml: there is no such file"):
        load([str(tmp_path / "none.yaml")], {})
    with pytest.raises(CommandError, match="cannot be read: Is a directory"):
        load([str(tmp_path)], {})


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    one = write(tmp_path, HEAD + "spec: {model: {source: builtin://tiny}, engine: {dtype: fp7}}", "one.yaml")
    two = write(tmp_path, HEAD + "spec: {model: {source: nonsense}}", "two.yaml")
    with pytest.raises(CommandError) as caught:
        load([one, two], {})
    assert "one.yaml: spec.engine.dtype" in str(caught.value)
    assert "two.yaml: spec.model.source" in str(caught.value)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="m is there twice"):
        load([write(tmp_path, GOOD), write(tmp_path, GOOD, "again.yaml")], {})


def test_stdin_is_read_and_its_paths_count_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(HEAD + "spec: {model: {source: file://model}}"))
    [document] = load(["-"], {})
    assert document["spec"]["model"]["source"] == f"file://{tmp_path}/model"


@pytest.mark.parametrize("source", ["file://./model", "file://model", "file://../{parent}/model"])
def test_relative_paths_count_from_the_manifests_folder(tmp_path: Path, source: str) -> None:
    model_folder(tmp_path / "model")
    file = write(tmp_path, HEAD + f"spec: {{model: {{source: '{source.format(parent=tmp_path.name)}'}}}}")
    assert load([file], {})[0]["spec"]["model"]["source"] == f"file://{tmp_path}/model"


def test_absolute_paths_stay(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    file = write(tmp_path, HEAD + f"spec: {{model: {{source: 'file://{model}'}}}}")
    assert load([file], {})[0]["spec"]["model"]["source"] == f"file://{model}"


def test_a_folder_with_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tiny.gguf").write_bytes(b"GGUF")
    file = write(tmp_path, HEAD + "spec: {model: {source: file://model}}")
    assert load([file], {})[0]["spec"]["model"]["source"] == f"file://{tmp_path}/model"


def test_another_namespace_is_this_machines_one(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.replace("{name: m}", "{name: m, namespace: team-a}"))
    assert load([file], {})[0]["metadata"]["namespace"] == "default"


@pytest.mark.parametrize(
    ("model", "name", "expected_name", "expected_source"),
    [
        ("{tmp}/My_Llama-3.1", None, "my-llama-3-1", "file://{tmp}/My_Llama-3.1"),
        ("hf://Qwen/Qwen3-0.6B", None, "qwen3-0-6b", "hf://Qwen/Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B@abc", None, "qwen3-0-6b", "hf://Qwen/Qwen3-0.6B@abc"),
        ("builtin://tiny", "own", "own", "builtin://tiny"),
    ],
)
def test_a_model_argument_becomes_a_manifest(
    tmp_path: Path, model: str, name: str | None, expected_name: str, expected_source: str
) -> None:
    document = manifest_for(model.format(tmp=tmp_path), name)
    assert document["metadata"]["name"] == expected_name
    assert document["spec"] == {"model": {"source": expected_source.format(tmp=tmp_path)}}
    assert yaml.safe_load(as_yaml(document)) == document


def test_a_model_argument_without_a_usable_name_asks_for_one() -> None:
    with pytest.raises(CommandError, match="add --name"):
        manifest_for("/models/___", None)


def test_a_printed_manifest_can_be_submitted_as_a_file(tmp_path: Path) -> None:
    document = manifest_for(str(model_folder(tmp_path / "model")), None)
    check(document, "--model", {})
    assert load([write(tmp_path, as_yaml(document))], {}) == [document]


def cache(folder: Path, refs: dict[str, str], commits: list[str]) -> dict[str, str]:
    repository = folder / "hub/models--org--name"
    for ref, commit in refs.items():
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    for commit in commits:
        (repository / "snapshots").mkdir(parents=True, exist_ok=True)
        model_folder(repository / "snapshots" / commit)
    return {"HF_HOME": str(folder)}


@pytest.mark.parametrize(
    ("location", "refs", "commits", "found"),
    [
        ("org/name", {"main": "c1"}, ["c1"], "c1"),
        ("org/name", {"main": "c2"}, ["c1", "c2"], "c2"),
        ("org/name@c1", {"main": "c2"}, ["c1", "c2"], "c1"),
        ("org/name@v1", {"main": "c2", "v1": "c1"}, ["c1", "c2"], "c1"),
        ("org/name", {"main": "c2"}, ["c1"], None),
        ("org/name@v2", {"main": "c1"}, ["c1"], None),
        ("org/other", {"main": "c1"}, ["c1"], None),
    ],
)
def test_hugging_face_models_in_the_local_cache_are_used_from_there_others_are_to_be_fetched(
    tmp_path: Path, location: str, refs: dict[str, str], commits: list[str], found: str | None
) -> None:
    environment = cache(tmp_path, refs, commits)
    resolved = resolve_source(f"hf://{location}", environment)
    assert resolved == (f"hf://{location}" if found is None else str(tmp_path / "hub/models--org--name/snapshots" / found))
    name, _, revision = location.partition("@")
    assert resolve_source(f"hf://{name}", environment, revision or None) == (resolved if found else f"hf://{name}")


def test_sources_that_need_a_cluster_say_what_to_use_here() -> None:
    with pytest.raises(SourceMissing, match="one machine has no PersistentVolumeClaims; use file://"):
        resolve_source("pvc://claim/path", {})
    with pytest.raises(SourceMissing, match=r"one machine has no PersistentVolumeClaims; use file://FOLDER or hf://ORG/NAME$"):
        check_adapter("pvc://claim/path")


def test_built_in_models_need_no_folder() -> None:
    assert resolve_source("builtin://tiny", {}) == "builtin://tiny"


def test_annotations_with_dates_are_text(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD.replace("{name: m}", "{name: m, annotations: {made: 2024-05-01}}"))
    metadata: dict[str, Any] = load([file], {})[0]["metadata"]
    assert metadata["annotations"] == {"made": "2024-05-01"}


def test_an_empty_stdin_is_called_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(CommandError, match=r"^stdin: there is no InferenceModel in it$"):
        load(["-"], {})
