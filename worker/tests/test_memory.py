"""Does the model fit, and if not, what would: the sums, and the sentence that a real loader says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_checkpoint import kv_bytes, small_engine

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import OutOfMemory
from pagoda_worker.loading.loader import kernels_in_use, load
from pagoda_worker.loading.memory import MemoryNeeds, check_fits, fitting_length
from pagoda_worker.models.checkpoint import checkpoint_bytes
from pagoda_worker.models.files import read_json
from pagoda_worker.models.registry import footprint_of

GIB = 1 << 30
EIGHT_B = MemoryNeeds(weights=5 * GIB, per_token=64 << 10, besides=0)
Checkpoint = Callable[..., Path]


def check(needs: MemoryNeeds, there: int, wanted: int | None) -> None:
    check_fits(needs, needs.kv_room(there), there, wanted=wanted, block_size=16, longest=1 << 17)


def test_the_sentence_names_the_length_that_fits():
    with pytest.raises(OutOfMemory) as refusal:
        check(EIGHT_B, 6 * GIB, 32768)
    assert str(refusal.value) == (
        "the model needs 5 GiB for weights and 2 GiB for KV of 32768 tokens; 6 GiB are there: maxModelLen 16384 fits"
    )
    assert (refusal.value.reason, refusal.value.exit_status) == ("OutOfMemory", 3)
    check(EIGHT_B, 6 * GIB, 16384)


def test_weights_alone_too_large_says_how_much_would_do():
    with pytest.raises(OutOfMemory, match=r"needs 5 GiB for weights, 4 GiB are there: no maxModelLen fits, give the worker at least 5 GiB"):
        check(EIGHT_B, 4 * GIB, None)


@given(
    st.integers(1, 1 << 40),
    st.integers(1, 1 << 22),
    st.integers(0, 1 << 34),
    st.integers(1, 1 << 41),
    st.integers(2, 1 << 17),
    st.integers(1, 64),
)
def test_what_is_said_to_fit_fits_and_a_block_more_does_not(
    weights: int, per_token: int, besides: int, there: int, longest: int, block: int
):
    needs = MemoryNeeds(weights=weights, per_token=per_token, besides=besides)
    room = needs.kv_room(there)
    fits = fitting_length(needs, room, block_size=block, longest=longest)
    assert 0 <= fits <= longest
    if fits:
        assert weights + besides + fits * per_token <= there
    if fits >= 2:
        check_fits(needs, room, there, wanted=fits, block_size=block, longest=longest)
    if fits < longest - block:
        assert weights + besides + (fits + block) * per_token > there
        with pytest.raises(OutOfMemory):
            check_fits(needs, room, there, wanted=fits + block, block_size=block, longest=longest)


@pytest.mark.parametrize("differences", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}], ids=str)
def test_the_footprint_is_what_the_checkpoint_holds(checkpoint: Checkpoint, differences: dict[str, bool]):
    folder = checkpoint("-".join(["footprint", *differences]), **differences)
    expected = footprint_of(read_json(folder, "config.json")).parameters * 4
    assert expected <= checkpoint_bytes(folder) <= expected + 16_000, "the file has a header besides"


def test_a_loader_refuses_before_it_reads_and_names_what_fits(checkpoint: Checkpoint):
    config = EngineConfig(model_dir=checkpoint("roomy", max_position_embeddings=1 << 20), device="cpu", max_running=16, max_batch_tokens=64)
    with pytest.raises(
        OutOfMemory, match=r"for KV of 1000000 tokens, .* for everything else; 512 MiB are there: maxModelLen \d+ fits"
    ) as refusal:
        load(_with(config, max_model_len=1_000_000, memory_bytes=512 << 20))
    fits = int(str(refusal.value).split("maxModelLen ")[1].split()[0])
    loaded = load(_with(config, max_model_len=fits, memory_bytes=512 << 20))
    assert loaded.max_model_len == loaded.max_model_len_fitting == fits
    assert loaded.block_count * 16 >= fits, "one sequence may use more than the usual quarter"


def test_without_a_wanted_length_the_cache_is_a_quarter_and_the_fitting_length_told(checkpoint: Checkpoint):
    folder = checkpoint("roomy", max_position_embeddings=1 << 20)
    loaded = load(EngineConfig(model_dir=folder, device="cpu", max_batch_tokens=64, max_running=16, memory_bytes=1 << 30))
    assert loaded.block_count == (1 << 30) // 4 // kv_bytes(1)
    assert loaded.max_model_len == loaded.block_count * 16
    assert loaded.max_model_len_fitting == 1 << 20, "as long as it was trained for"


def test_news_come_in_bytes(checkpoint: Checkpoint):
    news: list[tuple[str, int, int]] = []
    folder = checkpoint("sharded", shard_size="20KB")
    Engine(EngineConfig(model_dir=folder, device="cpu", max_running=4), news=lambda *told: news.append(told))
    counted = [told for told in news if told[0] == "loading weights"]
    assert [done for _, done, _ in counted] == sorted(done for _, done, _ in counted)
    assert {total for *_, total in counted} == {checkpoint_bytes(folder)}
    assert counted[-1][1] > 0.8 * checkpoint_bytes(folder)


# ---- the self-test after loading


def test_the_self_test_measures_and_leaves_no_trace(checkpoint: Checkpoint):
    quiet, tested = (small_engine(checkpoint(), self_test=on) for on in (False, True))
    assert (quiet.facts.prefill_tokens_per_s, quiet.facts.decode_tokens_per_s) == (0, 0)
    assert tested.facts.prefill_tokens_per_s > 0
    assert tested.facts.decode_tokens_per_s > 0
    tested.check_integrity()
    before, after = quiet.idle_state(), tested.idle_state()
    for name in ("step", "num_running", "kv_free_tokens", "prompt_tokens_total", "generation_tokens_total", "prefix_queries_total"):
        assert getattr(before, name) == getattr(after, name), name
    for _ in range(2):  # prefixes are found where they were put, and seeds are drawn in the same order
        one, other = (
            engine.generate([[each % 160 for each in range(7919, 7919 + 40)]], max_tokens=8, ignore_eos=True) for engine in (quiet, tested)
        )
        assert one[0].token_ids == other[0].token_ids
        assert one[0].finish.usage == other[0].finish.usage


@pytest.mark.parametrize(
    "settings", [{"max_running": 1}, {"max_model_len": 2}, {"kv_cache_bytes": kv_bytes(1)}, {"max_batch_tokens": 1}], ids=str
)
def test_the_self_test_makes_do_with_little_room(checkpoint: Checkpoint, settings: dict[str, int]):
    engine = small_engine(checkpoint(), self_test=True, **settings)
    engine.check_integrity()
    assert len(engine.generate([[3]], max_tokens=1, ignore_eos=True)[0].token_ids) == 1


def _with(config: EngineConfig, **changes: int) -> EngineConfig:
    from dataclasses import replace

    return replace(config, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operators", "attention", "threads", "words"),
    [
        ("native (amx)", "auto", 2, "native (amx), 2 threads"),
        ("native (avx512)", "native", 1, "native (avx512), 1 thread"),
        ("native (amx)", "eager", 4, "native (amx), attention eager, 4 threads"),
        ("torch, batch-invariant", "auto", 1, "torch, batch-invariant, 1 thread"),
        ("triton", "triton", None, "triton"),
        ("torch", "sdpa", None, "torch, attention sdpa"),
    ],
)
def test_the_kernels_in_use_are_told_in_words(operators: str, attention: str, threads: int | None, words: str):
    assert kernels_in_use(operators, attention, threads=threads) == words
