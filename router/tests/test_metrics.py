"""What the router counts, and that no client's text becomes a label."""

from fleet_rig import Rig
from prometheus_client.exposition import generate_latest

from pagoda_router.backends.base import Settlement
from pagoda_router.generation import ModelName
from pagoda_router.surface import RequestOutcome


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
