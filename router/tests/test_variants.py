"""Several variants of one model: whose turn it is, who may insist on one, and that none of them holds up another."""

import asyncio
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from fleet_rig import ends_of, generation, model_object, rig
from hypothesis import given
from hypothesis import strategies as st
from scripted import Caller, Script, ScriptedCatalog, byte_level_tokenizer, chat
from scripted_worker import ScriptedWorker

from pagoda_router.abilities import ALL_ON, Switches
from pagoda_router.catalog import CatalogEntry
from pagoda_router.errors import BadRequest, ColdStart
from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.openai.features import Wishes, wishes_of
from pagoda_router.openai.offers import require_switches, variant_and_backend
from pagoda_router.placement.policy import choose_variant

TINY = ModelName("tiny")
SPLIT = (("main", 90), ("int8", 10))


def worker_of(variant: str, **more) -> ScriptedWorker:
    return ScriptedWorker(variant=variant, name=f"tiny-{variant}-0", **more)


async def served_by(*workers: ScriptedWorker) -> str:
    """Which of them got the next request; it is answered."""
    waits = {asyncio.create_task(worker.next_submit()): worker for worker in workers}
    done, rest = await asyncio.wait(waits, return_when="FIRST_COMPLETED")
    for task in rest:
        task.cancel()
    (task,) = done
    waits[task].finish(task.result().request_id)
    return waits[task].variant


# ---------------------------------------------------------------- whose turn

CHOICES = [
    # weights, with a worker → share of each
    ([("a", 100)], {"a"}, {"a": 1.0}),
    ([("a", 90), ("b", 10)], {"a", "b"}, {"a": 0.9, "b": 0.1}),
    ([("a", 1), ("b", 1), ("c", 2)], {"a", "b", "c"}, {"a": 0.25, "b": 0.25, "c": 0.5}),
    ([("a", 90), ("b", 10)], {"b"}, {"b": 1.0}),
    ([("a", 50), ("b", 25), ("c", 25)], {"b", "c"}, {"b": 0.5, "c": 0.5}),
    ([("a", 100), ("b", 0)], {"a", "b"}, {"a": 1.0}),
    ([("a", 100), ("b", 0)], {"b"}, {}),
    ([("a", 100)], set(), {}),
    ([("new", 100)], {"old"}, {"old": 1.0}),
    ([("new", 100)], {"old", "new"}, {"new": 1.0}),
]


@pytest.mark.parametrize(("weights", "routable", "shares"), CHOICES, ids=str)
def test_weights_decide_among_those_with_a_worker(weights, routable, shares):
    rng = Random(7)
    got = Counter(choose_variant(weights, routable, rng) for _ in range(4000))
    got.pop(None, None)
    assert set(got) == set(shares)
    for name, share in shares.items():
        assert abs(got[name] / 4000 - share) < 0.03


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 100)), unique_by=lambda pair: pair[0]),
    st.sets(st.sampled_from("abcde")),
    st.integers(),
)
def test_the_same_draw_gives_the_same_variant_and_only_one_with_a_worker(weights, routable, seed):
    first, again = (choose_variant(weights, routable, Random(seed)) for _ in range(2))
    assert first == again
    assert first is None or (first in routable and dict(weights).get(first, 1) > 0)


# ---------------------------------------------------------------- the header

HEADERS = [
    ([], None),
    (["variant=int8"], "int8"),
    ([" variant=int8 "], "int8"),
    (["variant=a-1"], "a-1"),
]
REFUSED = [
    ([""], "the forms? (is|are) variant=NAME"),
    (["int8"], "'int8' is not known"),
    (["variant"], "is not known"),
    (["variant="], "is not a variant's name"),
    (["variant=INT8"], "is not a variant's name"),
    (["variant = int8"], "is not known"),
    (["variant=a,variant=b"], "names variant twice"),
    (["variant=a", "variant=a"], "names variant twice"),
    (["variant=a,"], "is not known"),
    (["speculation=maybe"], "speculation is 'maybe': write on or off"),
    (["variant=a, prefix-cache=no"], "prefix-cache is 'no': write on or off"),
    (["prefix-cache=off", "prefix-cache=on"], "names prefix-cache twice"),
    (["batching=OFF"], "batching is 'OFF': write on or off"),
    (["quantization=INT8"], "quantization is 'INT8': write none, int8"),
    (["quantization="], "quantization is '': write none, int8"),
    (["colour=red"], "'colour=red' is not known"),
]


@pytest.mark.parametrize(("values", "variant"), HEADERS, ids=str)
def test_the_header_names_a_variant(values, variant):
    assert wishes_of([(b"x-pagoda-features", value.encode()) for value in values]).variant == variant


@pytest.mark.parametrize(("values", "sentence"), REFUSED, ids=str)
def test_a_header_that_would_be_ignored_is_refused(values, sentence):
    with pytest.raises(BadRequest, match=sentence) as refused:
        wishes_of([(b"x-pagoda-features", value.encode()) for value in values])
    assert refused.value.param == "X-Pagoda-Features"


SWITCHES = [
    ("prefix-cache=off, variant=a", Switches(prefix_cache=False)),
    ("prefix-cache=on", ALL_ON),
    ("batching=off,speculation=off", Switches(batching=False, speculation=False)),
    ("speculation=on, batching=on", ALL_ON),
]


@pytest.mark.parametrize(("value", "switches"), SWITCHES)
def test_switches_are_read(value, switches):
    assert wishes_of([(b"x-pagoda-features", value.encode())]).switches == switches


def test_speculation_has_a_header_of_its_own_too():
    assert wishes_of([(b"x-pagoda-speculation", b"off")]) == wishes_of([(b"x-pagoda-features", b"speculation=off")])
    with pytest.raises(BadRequest, match="names speculation twice"):
        wishes_of([(b"x-pagoda-speculation", b"off"), (b"x-pagoda-features", b"speculation=off")])


def test_a_quantization_is_read():
    assert wishes_of([(b"x-pagoda-features", b"quantization=int8")]).quantization == "int8"


# ---------------------------------------------------------------- backends


def entry_of(**fields: object) -> CatalogEntry:
    known = {"served_name": "chat", "model": "chat", "created": 1, "ready": True, "reason": "", "max_model_len": None}
    return CatalogEntry(**{**known, **fields})


KINDS = {"variants": ("own", "q8", "q8b", "vllm"), "backends": ("pagoda",) * 3 + ("vllm",), "weights": (90, 10, 0, 0)}
KINDS["quantizations"] = ("", "int8", "int8", "")
THREE = {"variants": ("own", "fast", "vllm"), "backends": ("pagoda", "pagoda", "vllm"), "weights": (90, 10, 0)}
CHOICES = [
    # entry, wishes, variants that can answer, possible outcomes
    ({}, {}, {"default"}, {(None, "pagoda")}),
    ({"variants": ("a", "b"), "weights": (1, 1)}, {}, {"a", "b"}, {(None, "pagoda")}),
    ({"variants": ("a",), "backends": ("tgi",), "weights": (1,)}, {}, set(), {(None, "tgi")}),
    (THREE, {}, {"own", "fast", "vllm"}, {("own", "pagoda"), ("fast", "pagoda")}),
    (THREE, {}, {"fast", "vllm"}, {("fast", "pagoda")}),
    (THREE, {}, {"vllm"}, {("own", "pagoda"), ("fast", "pagoda")}),
    (THREE, {"backend": "vllm"}, set(), {("vllm", "vllm")}),
    (THREE, {"backend": "pagoda"}, {"own", "fast"}, {("own", "pagoda"), ("fast", "pagoda")}),
    (THREE, {"variant": "vllm"}, {"own"}, {("vllm", "vllm")}),
    (THREE, {"variant": "fast", "backend": "pagoda"}, set(), {("fast", "pagoda")}),
    (KINDS, {"quantization": "int8"}, {"q8", "q8b"}, {("q8", "pagoda")}),
    (KINDS, {"quantization": "none"}, set(), {("own", "pagoda")}),
    (KINDS, {"quantization": "int8", "variant": "q8b"}, set(), {("q8b", "pagoda")}),
    ({}, {"quantization": "none"}, set(), {("default", "pagoda")}),
]


@pytest.mark.parametrize(("entry", "wishes", "ready", "outcomes"), CHOICES)
def test_a_backend_is_chosen_among_those_that_the_model_offers(entry, wishes, ready, outcomes):
    rng = Random(1)
    found = {variant_and_backend(entry_of(**entry), Wishes(**wishes), ready.__contains__, rng) for _ in range(200)}
    assert found == outcomes


NOT_OFFERED = [
    ({}, {"backend": "vllm"}, "X-Backend", "not offered by the backend 'vllm'; it is by: pagoda"),
    (THREE, {"variant": "own", "backend": "vllm"}, "X-Backend", "in variant own; it is by: pagoda, vllm"),
    (THREE, {"variant": "slow"}, "X-Pagoda-Features", "it has: own, fast, vllm"),
    ({}, {"quantization": "int8"}, "X-Pagoda-Features", r"no weights in int8; its variants are: default \(none\)"),
    (KINDS, {"quantization": "fp8"}, "X-Pagoda-Features", r"own \(none\), q8 \(int8\), q8b \(int8\), vllm \(not told\)"),
    (KINDS, {"quantization": "int8", "variant": "own"}, "X-Pagoda-Features", "no weights in int8 in variant own"),
]


@pytest.mark.parametrize(("entry", "wishes", "param", "words"), NOT_OFFERED)
def test_what_a_model_does_not_offer_is_named(entry, wishes, param, words):
    with pytest.raises(BadRequest, match=words) as refused:
        variant_and_backend(entry_of(**entry), Wishes(**wishes), lambda variant: True, Random(1))
    assert refused.value.param == param


async def test_what_was_applied_is_told_where_something_was_asked(dispatcher, catalog, assets):
    able = replace(assets, features=frozenset({"batching_toggle"}))
    app = create_app(dispatcher=dispatcher, catalog=ScriptedCatalog(able), settings=SurfaceSettings())
    asked = {"X-Pagoda-Features": "batching=off, speculation=on"}
    told = "variant=default, quantization=none, prefix-cache=on, batching=off, speculation=off"
    for body in (chat(), chat(stream=True)):
        dispatcher.script = Script(batches=[[5]])
        assert (await Caller(app)("POST", "/v1/chat/completions", body, asked)).headers["x-pagoda-features"] == told
        assert "x-pagoda-features" not in (await Caller(app)("POST", "/v1/chat/completions", body)).headers
    assert [generation.switches.batching for generation in dispatcher.generations] == [False, True, False, True]


CANNOT = [
    (frozenset(), {}, "batching=off: these workers cannot run a request alone"),
    (None, {}, "batching=off: these workers cannot run a request alone"),
    (frozenset({"batching_toggle"}), {"n": 2}, "batching=off: n is 2, and one choice runs alone"),
]


@pytest.mark.parametrize(("features", "fields", "sentence"), CANNOT)
async def test_a_switch_that_cannot_be_carried_out_is_refused_by_name(dispatcher, assets, features, fields, sentence):
    catalog = ScriptedCatalog(replace(assets, features=features))
    app = create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings())
    call = await Caller(app)("POST", "/v1/chat/completions", chat(**fields), {"X-Pagoda-Features": "batching=off"})
    assert (call.status, call.error["param"]) == (400, "X-Pagoda-Features")
    assert sentence in call.error["message"]
    assert "x-pagoda-features" not in call.headers


def test_other_backends_switch_nothing_but_their_prefix_cache():
    for name in ("batching", "speculation"):
        wishes = wishes_of([(b"x-pagoda-features", f"{name}=off".encode())])
        with pytest.raises(BadRequest, match=f"{name}=off: a vllm worker decides that itself"):
            require_switches(wishes, "vllm", 1, None)
    require_switches(wishes_of([(b"x-pagoda-features", b"prefix-cache=off")]), "vllm", 2, None)


async def test_a_prompt_that_no_cache_may_know_is_salted_for_our_own_worker(call, dispatcher):
    for headers in ({}, {"X-Pagoda-Features": "prefix-cache=off"}, {"X-Pagoda-Features": "prefix-cache=off"}):
        await call("POST", "/v1/chat/completions", chat(), headers)
    salts = [generation.cache_salt for generation in dispatcher.generations]
    assert salts[0] == b""
    assert len({*salts}) == 3
    assert [generation.switches.prefix_cache for generation in dispatcher.generations] == [True, False, False]


# ---------------------------------------------------------------- through the router


async def test_requests_are_shared_by_weight_and_the_header_overrules_it(tmp_path):
    async with worker_of("main") as main, worker_of("int8") as int8, rig(tmp_path, main, int8, rng=Random(3)) as router:
        router.know(main, int8, models=[model_object(variants=SPLIT)])
        got = Counter()
        for _ in range(60):
            task = asyncio.create_task(router.collect())
            got[await served_by(main, int8)] += 1
            await task
        assert 1 <= got["int8"] <= 14
        for variant in ("int8", "main"):
            task = asyncio.create_task(router.collect(generation(variant=variant)))
            assert await served_by(main, int8) == variant
            await task


async def test_the_variant_that_was_drawn_is_told(tmp_path):
    main, int8 = worker_of("main"), worker_of("int8")
    for worker in (main, int8):
        worker.use_tokenizer(byte_level_tokenizer().to_str().encode())
    async with main, int8, rig(tmp_path, main, int8, rng=Random(3)) as router:
        router.know(main, int8, models=[model_object(variants=SPLIT)])
        await router.until_routable(2)
        app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=SurfaceSettings())
        asked = {"X-Pagoda-Features": "prefix-cache=off, speculation=off"}
        task = asyncio.create_task(Caller(app)("POST", "/v1/completions", {"model": "tiny", "prompt": [5, 6]}, asked))
        served = await served_by(main, int8)
        told = (await task).headers["x-pagoda-features"]
        assert told == f"variant={served}, quantization=none, prefix-cache=off, batching=on, speculation=off"


async def test_a_variant_of_weight_zero_serves_only_those_who_insist(tmp_path):
    async with worker_of("main") as main, worker_of("trial") as trial, rig(tmp_path, main, trial) as router:
        known = model_object(variants=(("main", 100), ("trial", 0)), wake_timeout_s=0.2)
        router.know(main, trial, models=[known])
        task = asyncio.create_task(router.collect(generation(variant="trial")))
        assert await served_by(main, trial) == "trial"
        await task
        router.know(trial, models=[known])
        assert not router.fleet.get("tiny").ready
        with pytest.raises(ColdStart):
            await router.collect()
        assert trial.submits.empty()


async def test_the_share_of_a_variant_that_is_lost_goes_to_the_other_also_for_those_that_wait(tmp_path):
    async with (
        worker_of("main", capacity_tokens=64) as main,
        worker_of("int8", capacity_tokens=64) as int8,
        rig(tmp_path, main, int8) as router,
    ):
        router.know(main, int8, models=[model_object(variants=(("main", 50), ("int8", 50)))])
        running = [asyncio.create_task(router.collect(generation(20, 40, variant=name))) for name in ("main", "int8")]
        first, _ = await main.next_submit(), await int8.next_submit()
        late = [asyncio.create_task(router.collect(generation(20, 40, request_id=f"late{n}"))) for n in range(4)]
        await asyncio.sleep(0)
        assert sum(router.dispatcher.waiting_by_variant(TINY).values()) == 4
        running[1].cancel()
        router.know(main, models=[model_object(variants=(("main", 50), ("int8", 50)))])
        main.finish(first.request_id)
        for _ in late:
            assert await served_by(main) == "main"
        await asyncio.gather(*late, running[0])


async def test_a_full_variant_does_not_hold_up_another(tmp_path):
    async with worker_of("main") as main, worker_of("int8", capacity_tokens=64) as int8, rig(tmp_path, main, int8) as router:
        router.know(main, int8, models=[model_object(variants=SPLIT)])
        stuck = [asyncio.create_task(router.collect(generation(20, 40, variant="int8", request_id=f"s{n}"))) for n in range(40)]
        await int8.next_submit()
        task = asyncio.create_task(router.collect(generation(600, 100, variant="main")))
        assert await served_by(main) == "main"
        await task
        assert router.dispatcher.waiting_by_variant(TINY) == {"int8": 39}
        for waiting in stuck:
            waiting.cancel()


async def test_an_insisted_variant_at_zero_is_waited_for_while_the_other_serves(tmp_path):
    async with worker_of("main") as main, worker_of("int8") as int8, rig(tmp_path, main) as router:
        known = model_object(variants=SPLIT)
        router.know(main, models=[known])
        task = asyncio.create_task(router.collect(generation(variant="int8")))
        await asyncio.sleep(0.02)
        assert router.dispatcher.waiting_by_variant(TINY) == {"int8": 1}
        router.know(main, int8, models=[known])
        assert await served_by(main, int8) == "int8"
        assert ends_of(await task) == {0: "stop"}


async def test_a_renamed_variant_leaves_no_gap(tmp_path):
    async with worker_of("default") as old, worker_of("main") as new, rig(tmp_path, old) as router:
        router.know(old, models=[model_object(variants=SPLIT)])
        task = asyncio.create_task(router.collect())
        assert await served_by(old) == "default"
        await task
        router.know(old, new, models=[model_object(variants=SPLIT)])
        await router.until_routable(2)
        task = asyncio.create_task(router.collect())
        assert await served_by(old, new) == "main"
        await task


async def test_an_unknown_variant_is_refused_naming_the_known_ones(tmp_path):
    async with worker_of("main") as main, rig(tmp_path, main) as router:
        router.know(main, models=[model_object(variants=SPLIT)])
        app = create_app(dispatcher=router.dispatcher, catalog=router.fleet, settings=SurfaceSettings())
        call = await Caller(app)("POST", "/v1/chat/completions", chat(), headers={"X-Pagoda-Features": "variant=fp8"})
        assert call.status == 400
        assert call.error["message"] == "tiny has no variant 'fp8'; it has: main, int8"


# ---------------------------------------------------------------- description


async def test_variants_share_a_tokenizer_file_and_the_smaller_limit_holds_for_both(tmp_path):
    async with worker_of("main") as main, worker_of("int8") as int8:
        int8.max_model_len = 1024
        async with rig(tmp_path, main) as router:
            router.know(main, int8, models=[model_object(variants=SPLIT)])
            await router.until_routable(2)
            assert (len(main.fetched), int8.fetched) == (2, []), "named by hash, fetched once"
            assert router.fleet.text(TINY).max_model_len == 1024
            assert router.fleet.text(TINY, "main").max_model_len == 2048
            assert router.fleet.text(TINY, "fp8") is None


async def test_a_variant_with_another_tokenizer_gets_no_requests_and_says_why(tmp_path):
    async with worker_of("main") as main, worker_of("int8") as int8, rig(tmp_path, main) as router:
        int8.use_tokenizer(byte_level_tokenizer().to_str().encode())
        router.know(main, int8, models=[model_object(variants=SPLIT)])
        await router.until(lambda: any("share a tokenizer" in link.view().reason for link in router.fleet.links(TINY)))
        assert router.fleet.routable_variants(TINY) == {"main"}
