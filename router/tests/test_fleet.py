"""The catalog: what exists, what is ready and why not, and the text assets that outlive workers."""

import hashlib
from pathlib import Path

import pytest
from fleet_rig import model_object, rig
from scripted_worker import TEMPLATE, TOKENIZER, ScriptedWorker

from pagoda_router.discovery.snapshot import FleetSnapshot
from pagoda_router.errors import ModelNotFound
from pagoda_router.generation import ModelName
from pagoda_router.text.artifacts import ArtifactCache, BadArtifact

TINY = ModelName("tiny")


async def test_a_model_is_listed_without_any_worker(tmp_path):
    async with rig(tmp_path) as router:
        router.know(models=[model_object(served_names=("chat", "tiny"), created=7)])
        entries = router.fleet.list()
        assert [(entry.served_name, entry.model, entry.created) for entry in entries] == [("chat", "tiny", 7), ("tiny", "tiny", 7)]
        assert entries[0].reason == "it has no worker"
        assert not entries[0].ready
        assert entries[0].max_model_len is None


async def test_the_reason_of_the_manifests_status_is_told_when_there_is_no_worker(tmp_path):
    async with rig(tmp_path) as router:
        router.know(models=[model_object(not_ready_reason="the image is being pulled")])
        assert router.fleet.get("tiny").reason == "the image is being pulled"


async def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    async with rig(tmp_path) as router:
        router.know(models=[model_object("a"), model_object("b")])
        with pytest.raises(ModelNotFound, match="there is no model 'c'; there is: a, b"):
            router.fleet.get("c")
        router.fleet.apply(FleetSnapshot())
        with pytest.raises(ModelNotFound, match="there is: none yet"):
            router.fleet.get("a")


async def test_a_ready_worker_makes_its_model_ready_and_describes_its_text(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        entry = router.fleet.get("tiny")
        assert (entry.ready, entry.reason, entry.max_model_len) == (True, "", 2048)
        text = router.fleet.text(TINY)
        assert Path(text.tokenizer_file).read_bytes() == TOKENIZER
        assert text.chat_template == TEMPLATE.decode()
        assert text.special_tokens == {"eos_token": "<eos>"}
        assert (text.eos_token_ids, text.bos_token_id, text.vocab_size, text.max_top_logprobs) == ((0,), None, 512, 5)


async def test_what_a_ready_model_is_listed_as_follows_its_object_and_its_worker(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        assert router.fleet.get("tiny") is router.fleet.get("tiny"), "made once while nothing changes"
        router.know(worker, models=[model_object(created=9)])
        assert (router.fleet.get("tiny").created, router.fleet.get("tiny").ready) == (9, True)
        router.know(models=[model_object(created=9)])
        assert (router.fleet.get("tiny").ready, router.fleet.get("tiny").reason) == (False, "it has no worker")


async def test_an_undescribed_model_has_no_text_yet(tmp_path):
    async with ScriptedWorker(ready=False) as worker, rig(tmp_path) as router:
        router.know(worker)
        await router.until(lambda: router.fleet.get("tiny").reason == "the model is loading")
        assert router.fleet.text(TINY) is None


async def test_a_restarted_router_knows_the_text_of_a_sleeping_model(tmp_path):
    async with ScriptedWorker() as worker:
        async with rig(tmp_path, worker) as router:
            before = router.fleet.text(TINY)
        async with rig(tmp_path) as restarted:
            restarted.know(models=[model_object()])
            assert restarted.fleet.text(TINY) == before
            assert restarted.fleet.get("tiny").max_model_len == 2048
        async with rig(tmp_path, worker):
            pass
        assert len(worker.fetched) == 2, "one tokenizer and one template, fetched once"


async def test_a_model_with_another_source_forgets_the_old_text(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        router.know(models=[model_object(source="hf://other/model")])
        assert router.fleet.text(TINY) is None


async def test_a_damaged_cache_file_is_fetched_again(tmp_path):
    async with ScriptedWorker() as worker:
        async with rig(tmp_path, worker):
            pass
        (tmp_path / hashlib.sha256(TOKENIZER).hexdigest()).write_bytes(b"half a file")
        async with rig(tmp_path, worker) as router:
            assert Path(router.fleet.text(TINY).tokenizer_file).read_bytes() == TOKENIZER


async def test_a_worker_whose_artifacts_do_not_hash_to_their_names_is_not_used(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path) as router:
        worker.sends_corrupt_artifacts = True
        router.know(worker)
        await router.until(lambda: "hash to" in router.fleet.get("tiny").reason)
        assert "cannot be described" in router.fleet.get("tiny").reason
        worker.sends_corrupt_artifacts = False
        await router.until_routable()


async def test_a_worker_of_another_model_is_not_used(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path) as router:
        worker.described_model = "other"
        router.know(worker)
        await router.until(lambda: "it serves other, not tiny" in router.fleet.get("tiny").reason)


async def test_a_worker_that_comes_back_is_described_afresh(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        worker.use_tokenizer(b"another tokenizer")
        worker.break_session()
        await router.until(lambda: worker.epoch == 2 and router.fleet.get("tiny").ready)
        assert Path(router.fleet.text(TINY).tokenizer_file).read_bytes() == b"another tokenizer"


# ---------------------------------------------------------------- the cache folder


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "abc", "A" * 64, "g" * 64])
def test_only_a_hash_names_a_file(tmp_path, name):
    with pytest.raises(BadArtifact):
        ArtifactCache(tmp_path).path(name)


def test_an_artifact_is_stored_whole_or_not_at_all(tmp_path):
    cache = ArtifactCache(tmp_path)
    name = hashlib.sha256(b"content").hexdigest()
    with pytest.raises(BadArtifact, match="hash to"):
        cache.store(name, b"other")
    assert not cache.has(name)
    cache.store(name, b"content")
    assert cache.has(name)
    assert ArtifactCache(tmp_path).has(name)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"source": 3}'])
def test_a_damaged_description_counts_as_none(tmp_path, content):
    cache = ArtifactCache(tmp_path)
    cache._model_file(TINY).write_bytes(content)
    assert cache.recall(TINY, "builtin://tiny") is None
