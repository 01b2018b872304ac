"""What the router counts, and that no client's text becomes a label."""

import asyncio

import prometheus_client
import pytest
from fleet_rig import Rig, generation, model_object, rig
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from scripted import Caller, ScriptedCatalog, ScriptedDispatcher, chat
from scripted_worker import ScriptedWorker

from pagoda_router.backends.base import Settlement
from pagoda_router.dispatch.second_tries import RetryShares
from pagoda_router.errors import ModelUnavailable, NoWorker, Overloaded, UpstreamFailed
from pagoda_router.generation import ModelName
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import RequestOutcome, SurfaceSettings
from pagoda_router.metrics import series
from pagoda_router.metrics.fleet import FleetCollector
from pagoda_router.metrics.requests import RouterMetrics
from pagoda_router.objectives import Slo
from pagoda_router.wire import worker_pb2 as wire


def outcome(**fields: object) -> RequestOutcome:
    usual = {"endpoint": "chat", "request_id": "secret-id", "model": "tiny", "status": 200}
    return RequestOutcome(**{**usual, **fields})  # type: ignore[arg-type]


def settlement(**fields: object) -> Settlement:
    usual = {"model": ModelName("tiny"), "predicted_output_tokens": 40, "output_tokens": [], "ran": True}
    return Settlement(**{**usual, **fields})  # type: ignore[arg-type]


def test_an_answered_request_is_counted_with_its_tokens_and_times(tmp_path):
    rig = Rig(tmp_path)
    rig.metrics.request_started("chat")
    assert rig.metric("requests_in_progress") == 1
    rig.metrics.request_finished(outcome(prompt_tokens=30, cached_tokens=16, completion_tokens=7, ttft_s=0.02, duration_s=0.3))
    assert rig.metric("requests_in_progress") == 0
    assert rig.metric("requests_total", model="tiny", endpoint="chat", code="200") == 1
    assert [rig.metric("tokens_total", model="tiny", kind=kind) for kind in ("prompt", "cached", "completion")] == [30, 16, 7]
    assert rig.metric("time_to_first_token_seconds_sum", model="tiny") == 0.02
    assert rig.metric("request_duration_seconds_count", model="tiny") == 1


def test_a_request_for_no_known_model_is_counted_without_its_words(tmp_path):
    rig = Rig(tmp_path)
    rig.metrics.request_started("chat")
    rig.metrics.request_finished(outcome(model=None, status=404, error_code="model_not_found"))
    assert rig.metric("requests_total", model="unknown", endpoint="chat", code="404") == 1
    assert b"secret-id" not in generate_latest(rig.registry)


def test_predicted_and_actual_output_are_told_side_by_side(tmp_path):
    rig = Rig(tmp_path)
    rig.dispatcher.settled(settlement(reserved_tokens=64, used_tokens=48, output_tokens=[22, 3]))
    assert rig.metric("predicted_output_tokens_total", model="tiny") == 80
    assert rig.metric("actual_output_tokens_total", model="tiny") == 25


USES = [
    # reserved, used → settled, refunded, overrun
    (64, 48, (48, 16, 0)),
    (64, 64, (64, 0, 0)),
    (64, 0, (0, 64, 0)),
    (64, 96, (64, 0, 32)),
]


@pytest.mark.parametrize(("reserved", "used", "counted"), USES)
def test_a_reservation_is_settled_by_what_was_used_and_the_rest_refunded(tmp_path, reserved, used, counted):
    rig = Rig(tmp_path)
    rig.dispatcher.settled(settlement(reserved_tokens=reserved, used_tokens=used))
    assert tuple(rig.metric(f"{name}_kv_tokens_total", model="tiny") for name in ("settled", "refunded", "overrun")) == counted


async def test_a_placement_is_counted_with_its_policy_and_reason(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        worker.finish(submit.request_id)
        await task
        assert router.metric("placements_total", model="tiny", policy="predicted", reason="only_worker") == 1
        assert router.metric("placements_total", model="tiny", policy="predicted", reason="least_wait") == 0


async def test_what_a_worker_does_to_a_request_is_an_upstream_error_and_a_leaving_client_is_none(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker, retries=RetryShares(replays=0)) as router:

        def errors() -> dict[str, float]:
            reasons = ("engine_error", "worker_drained", "refused", "worker_lost")
            return {reason: router.metric("upstream_errors_total", model="tiny", reason=reason) for reason in reasons}

        async def begin() -> tuple[asyncio.Task[object], int]:
            task = asyncio.create_task(router.collect())
            submit = await worker.next_submit()
            worker.tokens(submit.request_id, [5], started=True)
            return task, submit.request_id

        assert set(errors().values()) == {0}
        for reason in (wire.FINISH_ENGINE_ERROR, wire.FINISH_SHUTDOWN):
            task, request_id = await begin()
            worker.finish(request_id, reason)
            await asyncio.gather(task, return_exceptions=True)
        left = asyncio.create_task(router.collect())
        submit = await worker.next_submit()
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        worker.finish(submit.request_id, wire.FINISH_CANCELLED)
        refused = asyncio.create_task(router.collect())
        worker.refuse((await worker.next_submit()).request_id, wire.Refused.OVERLOADED, "full")
        with pytest.raises(Overloaded):
            await refused
        task, _ = await begin()
        worker.break_session()
        await asyncio.gather(task, return_exceptions=True)
        assert errors() == {"engine_error": 1, "worker_drained": 1, "refused": 1, "worker_lost": 1}


@pytest.mark.parametrize(
    ("refusal", "told_s"),
    [
        (Overloaded("full", retry_after_s=7.0), 7.0),
        (NoWorker("none", retry_after_s=600.0), 60.0),
        (ModelUnavailable("broken"), None),
        (UpstreamFailed("lost"), None),
    ],
    ids=["429", "503, capped", "503 in vain", "502"],
)
async def test_what_clients_are_told_to_wait_is_measured(assets, refusal, told_s):
    registry = CollectorRegistry()
    dispatcher = ScriptedDispatcher()
    dispatcher.script.refusal = refusal
    app = create_app(dispatcher=dispatcher, catalog=ScriptedCatalog(assets), settings=SurfaceSettings(), observer=RouterMetrics(registry))
    call = await Caller(app)("POST", "/v1/chat/completions", chat())
    assert call.headers.get("retry-after") == (None if told_s is None else str(int(told_s)))
    assert registry.get_sample_value("pagoda_router_retry_after_seconds_sum", {"model": "tiny-object"}) == told_s


async def test_workers_promises_and_cost_are_those_of_the_fleet_now(tmp_path):
    async with ScriptedWorker() as worker, ScriptedWorker(name="late", ready=False, variant="big") as late, rig(tmp_path, worker) as router:
        router.registry.register(FleetCollector(router.fleet))
        priced = model_object(
            variants=(("default", 100), ("big", 0)), prices=(("default", 1.0), ("big", 8.0)), slo=Slo(ttft_s=0.5, objective=0.9)
        )
        router.know(worker, late, models=[priced, model_object("free")])
        states = {
            (variant, state): router.metric("workers", model="tiny", variant=variant, state=state)
            for variant in ("default", "big")
            for state in ("routable", "unready", "draining")
        }
        assert {place: count for place, count in states.items() if count} == {("default", "routable"): 1, ("big", "unready"): 1}
        assert router.metric("model_cost_usd_per_hour", model="tiny") == 9.0
        assert router.metric("slo_threshold_seconds", model="tiny", sli="ttft") == 0.5
        assert router.metric("slo_objective_ratio", model="tiny") == 0.9
        text = generate_latest(router.registry).decode()
        assert 'slo_threshold_seconds{model="tiny",sli="tpot"}' not in text
        assert 'cost_usd_per_hour{model="free"}' not in text
        router.know(worker, models=[priced], terminating=[worker])
        assert router.metric("workers", model="tiny", variant="default", state="draining") == 1
        router.know(models=[model_object("free")])
        assert b'workers{model="tiny"' not in generate_latest(router.registry)


async def test_the_used_blocks_of_several_sequences_share_the_prompts_full_ones(tmp_path):
    async with ScriptedWorker() as worker, rig(tmp_path, worker) as router:
        task = asyncio.create_task(router.collect(generation(20, 40, n=2)))
        submit = await worker.next_submit()
        worker.tokens(submit.request_id, [5], started=True)
        for sequence, tokens in ((0, 4), (1, 13)):
            worker.finish(submit.request_id, sequence=sequence, tokens=tokens)
        await task
        assert submit.reserved_kv_tokens == 16 + 2 * 48
        assert router.metric("settled_kv_tokens_total", model="tiny") == 16 + 16 + 32
        assert router.metric("refunded_kv_tokens_total", model="tiny") == 48


def test_a_series_is_the_same_object_each_time_and_told_from_its_first_use_on():
    registry = CollectorRegistry()
    counter = series.Counter("things", "Things", ("kind",), registry)
    counter.labels("a").inc()
    assert counter.labels("a") is counter.labels("a")
    counter.labels("b")
    assert [registry.get_sample_value("things_total", {"kind": kind}) for kind in "abc"] == [1, 0, None]
    with pytest.raises(AssertionError, match="things has the labels"):
        counter.labels("a", "b")


def test_a_gauge_without_labels_is_one_series():
    registry = CollectorRegistry()
    gauge = series.Gauge("level", "Level", (), registry)
    gauge.labels().set(3)
    gauge.labels().dec()
    assert registry.get_sample_value("level") == 2


def test_a_histogram_tells_the_page_that_the_library_would():
    """The same observations in both, below, on and above the bounds."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    own = series.Histogram("wait", "Wait", ("model",), ours, buckets=(0.5, 1, 2.5))
    library = prometheus_client.Histogram("wait", "Wait", ("model",), buckets=(0.5, 1, 2.5), registry=theirs)
    for seconds in (0.0, 0.5, 0.75, 1, 2.5, 100):
        own.labels("tiny").observe(seconds)
        library.labels("tiny").observe(seconds)
    told = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == told
