"""PAGODA_MODEL_SOURCE becomes a folder, or one sentence."""

from pathlib import Path

import pytest

from pagoda_worker.errors import ConfigError
from pagoda_worker.settings.adapters import adapter_folder
from pagoda_worker.settings.sources import resolve_source


def test_the_shipped_models_have_folders():
    for name in ("tiny", "tiny-draft"):
        assert (resolve_source(f"builtin://{name}") / "config.json").is_file()


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_an_absolute_folder_is_taken_as_it_is(tmp_path: Path, scheme: str):
    (tmp_path / "config.json").write_text("{}")
    assert resolve_source(f"{scheme}{tmp_path}") == tmp_path


REFUSED = [
    ("builtin://huge", "this worker ships builtin://tiny, builtin://tiny-draft"),
    ("hf://Qwen/Qwen3-8B", "a worker reads folders only; fetch the model first"),
    ("s3://bucket/model", "a worker reads folders only"),
    ("pvc://claim/model", "a worker reads folders only"),
    ("models/chat", "write builtin://tiny, file:///absolute/folder or an absolute folder"),
    ("file://models/chat", "write builtin://tiny, file:///absolute/folder or an absolute folder"),
    ("/nowhere/at/all", "there is no folder /nowhere/at/all"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED, ids=[source for source, _ in REFUSED])
def test_a_source_that_is_no_folder_is_refused_with_what_to_write(source: str, message: str):
    with pytest.raises(ConfigError) as refusal:
        resolve_source(source)
    assert message in str(refusal.value)
    assert source in str(refusal.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        resolve_source(str(tmp_path))


ELSEWHERE = [
    ("s3://bucket/sql", "a running worker reads folders only: copy it to one that the worker sees, and write file:///absolute/folder"),
    ("pvc://claim/sql", "a running worker reads folders only"),
    ("hf://org/sql", "this worker holds no complete copy of its revision main, .*declare it in spec.adapters"),
    ("hf://sql", "adapter source hf://sql: write hf://ORGANISATION/NAME"),
]


@pytest.mark.parametrize(("source", "message"), ELSEWHERE, ids=[source for source, _ in ELSEWHERE])
def test_an_adapter_that_lies_elsewhere_is_refused_with_what_to_do(tmp_path: Path, source: str, message: str):
    with pytest.raises(ConfigError, match=message):
        adapter_folder(source, cache=tmp_path)
