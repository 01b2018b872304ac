"""The fetch step in this process, against a hub and a bucket over real HTTP: what is fetched, what is gone on from, what is said."""

import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import CHUNK, TOKEN, ModelServer, Repository, model_server

from pagoda_worker.errors import AccessDenied, ConfigError, DiskFull, FetchError, SourceMissing
from pagoda_worker.fetch.settings import parse_settings
from pagoda_worker.fetch.step import FetchState, Step, free_bytes, open_origin
from pagoda_worker.settings.model_cache import MARKER, Fetched
from pagoda_worker.settings.sources import resolve_source

MODEL = "pagoda/small"
MIB = 1 << 20


def weights(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def repository(**more: bytes) -> Repository:
    """Two shards, what belongs to them, and what must stay where it is."""
    shards = {"model-00001-of-00002.safetensors": weights(3 * MIB, 1), "model-00002-of-00002.safetensors": weights(2 * MIB, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    texts = {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": b"{}" * 5000,
        "tokenizer_config.json": b"{}",
        "generation_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    elsewhere = {
        "pytorch_model.bin": b"pickle",
        "modeling_small.py": b"import os",
        "README.md": b"# small",
        "consolidated.safetensors": b"another copy",
        "onnx/model.safetensors": b"another format",
        ".gitattributes": b"",
    }
    return Repository({**shards, **texts, **elsewhere, **{name.replace("__", "."): content for name, content in more.items()}})


WANTED = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as server:
        server.repositories[MODEL] = repository()
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "models"


class Fetcher:
    """Starts steps with this server and this cache; waits cost no time."""

    def __init__(self, server: ModelServer, cache: Path) -> None:
        self.server = server
        self.cache = cache
        self.waits: list[float] = []
        self.free: Callable[[Path], int] = free_bytes

    def __call__(self, source: str = f"hf://{MODEL}", **env: str) -> Fetched | None:
        variables = {"PAGODA_MODEL_SOURCE": source, "PAGODA_MODEL_CACHE": str(self.cache), "PAGODA_MODEL_ENDPOINT": self.server.url}
        settings = parse_settings(variables | {f"PAGODA_{name.upper()}": value for name, value in env.items()})
        self.cache.mkdir(exist_ok=True)
        self.state = FetchState(source)
        return Step(settings, self.state, open_origin=open_origin, free_bytes=self.free, sleep=self.waits.append).run()

    @property
    def left(self) -> set[str]:
        """Every file in the cache, by its name within the source's folder."""
        return {str(path.relative_to(self.cache).as_posix().split("/", 1)[1]) for path in self.cache.rglob("*") if path.is_file()}


@pytest.fixture
def fetch(server: ModelServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_")) and name != "HF_HUB_DISABLE_PROGRESS_BARS"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("pagoda_worker.fetch.download.FIRST_WAIT_S", 0.001)
    return Fetcher(server, cache)


def test_what_serving_needs_arrives_and_nothing_else(fetch: Fetcher, server: ModelServer, cache: Path):
    found = fetch()
    assert found is not None
    commit = server.repositories[MODEL].commit
    assert {path.name for path in found.folder.iterdir()} == WANTED | {MARKER}
    for name in WANTED:
        assert (found.folder / name).read_bytes() == server.repositories[MODEL].files[name]
    assert fetch.left == {f"{commit}/{name}" for name in WANTED | {MARKER}} | {"lock", "refs/main"}
    assert resolve_source(f"hf://{MODEL}", cache=cache) == found.folder
    assert resolve_source(f"hf://{MODEL}", revision=commit, cache=cache) == found.folder
    marker = json.loads((found.folder / MARKER).read_text())
    assert (marker["source"], marker["revision"], marker["commit"]) == (f"hf://{MODEL}", "main", commit)
    assert {each["name"] for each in marker["files"]} == WANTED
    assert server.bytes_sent == found.bytes_total + len(server.repositories[MODEL].files["model.safetensors.index.json"])


def test_a_complete_commit_needs_no_network(fetch: Fetcher, server: ModelServer):
    fetch()
    asked = len(server.requests)
    assert fetch(model_revision=server.repositories[MODEL].commit) is not None
    assert len(server.requests) == asked


def test_a_complete_branch_is_asked_for_once_and_not_fetched(fetch: Fetcher, server: ModelServer):
    fetch()
    sent, asked = server.bytes_sent, len(server.requests)
    fetch()
    index = len(server.repositories[MODEL].files["model.safetensors.index.json"])
    assert (server.bytes_sent - sent, len(server.requests) - asked) == (index, 2)


def test_without_the_hub_a_complete_copy_serves_and_the_log_says_so(fetch: Fetcher, server: ModelServer, caplog: pytest.LogCaptureFixture):
    first = fetch()
    server.behaviour.statuses = [503, 503]
    with caplog.at_level(logging.WARNING):
        assert fetch() == first
    assert "503; the complete copy of commit" in caplog.text
    assert "may be older" in caplog.text


def test_without_the_hub_and_without_a_copy_it_is_given_up(fetch: Fetcher, server: ModelServer):
    server.close()
    with pytest.raises(FetchError, match=r"cannot be asked: .* given up after 6 tries") as failure:
        fetch()
    assert (failure.value.reason, failure.value.exit_status) == ("WeightsDownload", 1)


def test_a_moved_branch_is_fetched_beside_the_old_commit(fetch: Fetcher, server: ModelServer, cache: Path):
    old = fetch()
    server.repositories[MODEL].files["config.json"] += b" "
    new = fetch()
    assert old is not None
    assert new is not None
    assert old.folder != new.folder
    assert old.folder.is_dir()
    assert resolve_source(f"hf://{MODEL}", cache=cache) == new.folder


def test_cut_connections_are_gone_on_from(fetch: Fetcher, server: ModelServer):
    server.behaviour.cut_after = MIB
    found = fetch()
    assert found is not None
    index = len(server.repositories[MODEL].files["model.safetensors.index.json"])
    assert server.bytes_sent == found.bytes_total + index, "no byte was fetched twice"


@pytest.mark.parametrize("statuses", [[500, 502], [429, 429], [503]], ids=str)
def test_errors_that_pass_are_tried_again(fetch: Fetcher, server: ModelServer, statuses: list[int]):
    server.behaviour.statuses = list(statuses)
    assert fetch() is not None
    assert len(fetch.waits) == len(statuses)


def test_a_server_that_sends_nothing_more_is_given_up(fetch: Fetcher, server: ModelServer):
    server.behaviour.cut_after = 0
    with pytest.raises(FetchError, match="given up after"):
        fetch()


def test_a_part_of_before_is_gone_on_from(fetch: Fetcher, server: ModelServer, cache: Path):
    commit, name = server.repositories[MODEL].commit, "model-00001-of-00002.safetensors"
    content = server.repositories[MODEL].files[name]
    fetch()
    first = server.sent[name]
    folder = resolve_source(f"hf://{MODEL}", cache=cache)
    staging = folder.rename(folder.with_name(f"{commit}.part"))
    (staging / MARKER).unlink()
    (staging / name).rename(staging / f"{name}.part")
    os.truncate(staging / f"{name}.part", 2 * MIB)
    fetch()
    assert server.sent[name] - first == len(content) - 2 * MIB
    assert (folder / name).read_bytes() == content


BROKEN_PARTS: dict[str, Callable[[bytes], bytes]] = {
    "longer than the file": lambda content: content + b"more",
    "another content": lambda content: bytes(len(content) - 10),
    "complete but wrong": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("kind", BROKEN_PARTS)
def test_a_broken_part_is_replaced(fetch: Fetcher, server: ModelServer, cache: Path, kind: str):
    commit, name = server.repositories[MODEL].commit, "model-00001-of-00002.safetensors"
    content = server.repositories[MODEL].files[name]
    folder = fetch()
    assert folder is not None
    staging = folder.folder.rename(folder.folder.with_name(f"{commit}.part"))
    (staging / MARKER).unlink()
    (staging / name).unlink()
    (staging / f"{name}.part").write_bytes(BROKEN_PARTS[kind](content))
    fetch()
    assert (folder.folder / name).read_bytes() == content


def test_a_published_commit_that_lost_a_file_is_completed_again(fetch: Fetcher, server: ModelServer):
    found = fetch()
    assert found is not None
    sent = dict(server.sent)
    (found.folder / "tokenizer.json").write_bytes(b"short")
    assert fetch() == found
    refetched = {name for name in server.sent if server.sent[name] != sent[name]}
    assert refetched == {"tokenizer.json", "model.safetensors.index.json"}
    assert (found.folder / "tokenizer.json").read_bytes() == server.repositories[MODEL].files["tokenizer.json"]


def test_a_server_that_knows_no_ranges_starts_the_file_again(fetch: Fetcher, server: ModelServer, monkeypatch: pytest.MonkeyPatch):
    fetch()
    server.repositories[MODEL].files["model-00001-of-00002.safetensors"] = content = weights(2 * MIB, 9)
    (staging := next(fetch.cache.glob("hf--*")) / f"{server.repositories[MODEL].commit}.part").mkdir()
    (staging / "model-00001-of-00002.safetensors.part").write_bytes(content[:100])
    server.behaviour.ignores_range = True
    found = fetch()
    assert found is not None
    assert (found.folder / "model-00001-of-00002.safetensors").read_bytes() == content


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "config.json"])
def test_a_file_that_arrives_wrong_is_fetched_once_more(fetch: Fetcher, server: ModelServer, name: str):
    server.behaviour.corrupt[name] = 1
    found = fetch()
    assert found is not None
    assert (found.folder / name).read_bytes() == server.repositories[MODEL].files[name]


def test_a_file_that_stays_wrong_is_never_published(fetch: Fetcher, server: ModelServer, cache: Path):
    server.behaviour.corrupt["model-00002-of-00002.safetensors"] = 9
    with pytest.raises(FetchError, match=r"model-00002-of-00002\.safetensors arrived twice with another hash"):
        fetch()
    with pytest.raises(ConfigError, match="holds no complete copy of its revision main"):
        resolve_source(f"hf://{MODEL}", cache=cache)


def test_parts_of_a_commit_that_nobody_wants_any_more_are_removed(fetch: Fetcher, server: ModelServer):
    server.behaviour.corrupt["model-00002-of-00002.safetensors"] = 9
    with pytest.raises(FetchError):
        fetch()
    server.behaviour.corrupt.clear()
    server.repositories[MODEL].files["config.json"] += b" "
    fetch()
    assert {name.split("/")[0] for name in fetch.left} == {server.repositories[MODEL].commit, "lock", "refs"}


def test_a_disk_without_room_is_told_before_the_first_byte(fetch: Fetcher, server: ModelServer):
    fetch.free = lambda folder: 3_200_000
    with pytest.raises(DiskFull, match=r"hf://pagoda/small needs 5\.3 MB, .*/models has 3\.2 MB free") as failure:
        fetch()
    assert failure.value.exit_status == 3
    assert fetch.left == {"lock"}
    assert set(server.sent) == {"model.safetensors.index.json"}


def test_a_disk_that_fills_up_on_the_way_leaves_no_parts(fetch: Fetcher, monkeypatch: pytest.MonkeyPatch):
    from pagoda_worker.fetch.download import PartFile

    def full(self: PartFile, data: bytes) -> None:
        raise DiskFull("/models is full")

    monkeypatch.setattr(PartFile, "append", full)
    with pytest.raises(DiskFull):
        fetch()
    assert fetch.left == {"lock"}


REFUSED: list[tuple[str, dict[str, str], dict[str, Any], type[FetchError], str]] = [
    ("pagoda/none", {}, {}, SourceMissing, "hf://pagoda/none is not on .*: correct the name, or it is private: then name a token"),
    ("pagoda/none", {"hf_token": TOKEN}, {}, SourceMissing, "hf://pagoda/none is not on .*: correct the name$"),
    (MODEL, {"model_revision": "v9"}, {}, SourceMissing, "has no revision v9: correct spec.model.revision"),
    (
        MODEL,
        {},
        {"gated": True},
        AccessDenied,
        "is gated: accept its terms on the hub and name a token with access in spec.model.tokenSecretRef",
    ),
    (MODEL, {"hf_token": "hf_wrong"}, {"gated": True}, AccessDenied, "spec.model.tokenSecretRef, the given one has none"),
    (MODEL, {}, {"private": True}, SourceMissing, "or it is private: then name a token in spec.model.tokenSecretRef"),
]


@pytest.mark.parametrize(("model", "env", "changes", "error", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_the_hub_refuses_is_one_sentence(
    fetch: Fetcher, server: ModelServer, model: str, env: dict[str, str], changes: dict[str, Any], error: type[FetchError], sentence: str
):
    for name, value in changes.items():
        setattr(server.repositories[MODEL], name, value)
    with pytest.raises(error, match=sentence) as failure:
        fetch(f"hf://{model}", **env)
    assert failure.value.exit_status == 3
    assert "\n" not in str(failure.value)
    assert "hf_" not in str(failure.value)


def test_a_token_opens_a_gated_model(fetch: Fetcher, server: ModelServer):
    server.repositories[MODEL].gated = True
    assert fetch(hf_token=TOKEN) is not None


INCOMPLETE: list[tuple[Callable[[dict[str, bytes]], object], str]] = [
    (lambda files: files.pop("config.json"), "has no config.json"),
    (lambda files: files.pop("tokenizer.json"), "has no tokenizer.json"),
    (lambda files: files.pop("model.safetensors.index.json"), "pytorch_model.bin is not read: ask its owner for safetensors"),
    (lambda files: files.pop("model-00002-of-00002.safetensors"), "names 'model-00002-of-00002.safetensors', which is not"),
    (lambda files: files.update({"model.safetensors.index.json": b"{}"}), "has no weight_map"),
    (
        lambda files: files.update({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}),
        "names '../x.safetensors'",
    ),
    (
        lambda files: files.update({"model.safetensors.index.json": b'{"weight_map": {"a": "pytorch_model.bin"}}'}),
        "names 'pytorch_model.bin'",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), INCOMPLETE, ids=[sentence for _, sentence in INCOMPLETE])
def test_a_repository_that_cannot_be_served_is_refused_before_anything_is_written(
    fetch: Fetcher, server: ModelServer, change: Callable[[dict[str, bytes]], object], sentence: str
):
    change(server.repositories[MODEL].files)
    with pytest.raises(SourceMissing, match=sentence):
        fetch()
    assert fetch.left == set()


def test_one_safetensors_file_needs_no_index(fetch: Fetcher, server: ModelServer):
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": weights(100)}
    server.repositories["pagoda/one"] = Repository(files)
    found = fetch("hf://pagoda/one")
    assert found is not None
    assert {path.name for path in found.folder.iterdir()} == {*files, MARKER}


# ---- S3


@pytest.fixture
def bucket(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    objects = {f"chat/small/{name}": content for name, content in repository().files.items()}
    server.buckets["weights"] = objects | {"chat/small-two/config.json": b"{}"}
    return server.buckets["weights"]


def test_a_folder_of_a_bucket_is_fetched_signed(fetch: Fetcher, server: ModelServer, bucket: dict[str, bytes], cache: Path):
    found = fetch("s3://weights/chat/small")
    assert found is not None
    assert {path.name for path in found.folder.iterdir()} == WANTED | {MARKER}
    assert resolve_source("s3://weights/chat/small", cache=cache) == found.folder
    assert all(sent.startswith("AWS4-HMAC-SHA256 Credential=id/") for _, sent in server.authorizations)
    asked = len(server.requests)
    assert fetch("s3://weights/chat/small") == found
    assert not any("GET /weights/chat/small/model-0" in request for request in server.requests[asked:])


def test_changed_objects_are_another_commit(fetch: Fetcher, server: ModelServer, bucket: dict[str, bytes], cache: Path):
    first = fetch("s3://weights/chat/small")
    bucket["chat/small/config.json"] += b" "
    second = fetch("s3://weights/chat/small")
    assert first is not None
    assert second is not None
    assert first.commit != second.commit
    assert resolve_source("s3://weights/chat/small", cache=cache) == second.folder


def test_a_cut_answer_of_the_bucket_costs_one_piece(
    fetch: Fetcher, server: ModelServer, bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pagoda_worker.fetch.bucket.PIECE_BYTES", MIB)
    server.behaviour.statuses = [500]
    assert fetch("s3://weights/chat/small") is not None
    server.behaviour.cut_after = CHUNK
    bucket["chat/small/model-00001-of-00002.safetensors"] += b"more"
    with pytest.raises(FetchError, match="given up after"):
        fetch("s3://weights/chat/small")
    server.behaviour.cut_after = None
    assert fetch("s3://weights/chat/small") is not None


def test_what_a_bucket_refuses_is_one_sentence(fetch: Fetcher, bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SourceMissing, match="holds no objects: correct the bucket or the folder"):
        fetch("s3://weights/nothing/here")
    with pytest.raises(SourceMissing, match="s3://nowhere/model: its list of objects is not there"):
        fetch("s3://nowhere/model")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    with pytest.raises(AccessDenied, match=r"AWS_SECRET_ACCESS_KEY in spec\.model\.credentialsSecretRef"):
        fetch("s3://weights/chat/small")


# ---- settings


def test_a_folder_needs_no_fetching(fetch: Fetcher):
    assert fetch("builtin://tiny") is None
    assert fetch("file:///models/pvc/chat") is None


def test_a_draft_model_and_adapters_are_fetched_beside_the_model_from_where_each_is():
    variables = {
        "PAGODA_MODEL_SOURCE": "s3://bucket/base",
        "PAGODA_MODEL_ENDPOINT": "https://s3.example",
        "PAGODA_DRAFT_SOURCE": "s3://bucket/small",
        "PAGODA_ADAPTERS": json.dumps([{"name": "a", "source": "hf://org/a", "revision": "v2"}, {"name": "b", "source": "file:///b"}]),
    }
    found = [(each.source, each.revision, each.endpoint, each.is_adapter) for each in parse_settings(variables).others]
    assert found == [("s3://bucket/small", "main", "https://s3.example", False), ("hf://org/a", "v2", "", True)]
    assert parse_settings({**variables, "PAGODA_DRAFT_SOURCE": "/here", "PAGODA_ADAPTERS": "[]"}).others == []


WRONG = [
    ({"PAGODA_MODEL_SOURCE": ""}, "PAGODA_MODEL_SOURCE is not set: write hf://ORGANISATION/NAME or s3://BUCKET/FOLDER"),
    ({"PAGODA_MODEL_CASHE": "/models"}, "PAGODA_MODEL_CASHE is not a setting of the fetch step; the closest is PAGODA_MODEL_CACHE"),
    ({"PAGODA_MODEL_CACHE": "models"}, "PAGODA_MODEL_CACHE is 'models'; it must be an absolute folder"),
    ({"PAGODA_MODEL_ENDPOINT": "hub.example"}, "PAGODA_MODEL_ENDPOINT is 'hub.example'; it must be an address such as https://"),
    ({"PAGODA_HTTP_PORT": "x"}, "PAGODA_HTTP_PORT is 'x'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_setting_is_one_line_naming_it(change: dict[str, str], message: str):
    with pytest.raises(ConfigError) as refusal:
        parse_settings({"PAGODA_MODEL_SOURCE": f"hf://{MODEL}", **change})
    assert message in str(refusal.value)


def test_settings_never_show_the_token():
    assert TOKEN not in repr(parse_settings({"PAGODA_MODEL_SOURCE": f"hf://{MODEL}", "PAGODA_HF_TOKEN": TOKEN}))


@pytest.mark.parametrize("source", ["hf://small", "hf://a/b/c", "hf://../x", "s3://weights", "s3://weights/../x", "gs://a/b"])
def test_a_source_that_names_no_model_is_refused(fetch: Fetcher, source: str):
    with pytest.raises(ConfigError, match=f"PAGODA_MODEL_SOURCE {source}"):
        fetch(source)
