"""Changes while people are being answered: a new spec, a revert in the middle, a version that cannot start, a canary and its rollback."""

import pytest
from conftest import Installation, quickstart, ready_routers, ready_workers
from kube import Namespace, Object, eventually, names
from traffic import steady_traffic

pytestmark = pytest.mark.usefixtures("addresses")


def change(models: Namespace, **spec: Object) -> None:
    models.apply(quickstart(spec=spec))


def settled(models: Namespace, within_s: float = 150) -> None:
    eventually(lambda: models.is_settled("tiny"), within_s=within_s, of="the rollout has settled")


def test_a_new_spec_rolls_out_without_a_failed_request(installation: Installation) -> None:
    models = installation.models
    change(models)
    settled(models)
    old = names(ready_workers(models, "tiny"))
    with steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        eventually(lambda: traffic.count("before") >= 10, within_s=60, of="traffic flows")
        traffic.mark("rolling")
        change(models, engine={"maxModelLen": 1024})
        eventually(lambda: models.condition("tiny", "Progressing")["reason"] == "RollingOut", within_s=15, of="the status says RollingOut")
        settled(models)
        traffic.mark("after")
        eventually(lambda: traffic.count("after") >= 10, within_s=60, of="traffic flows on")
    assert traffic.bad() == [], traffic.report()
    assert not old & names(models.pods("worker", "tiny"))
    assert traffic.count("rolling") > 0


def test_routers_that_are_replaced_one_by_one_cost_no_request(installation: Installation) -> None:
    models = installation.models
    old = models.pods("router")
    with steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        eventually(lambda: traffic.count("before") >= 10, within_s=60, of="traffic flows")
        for pod in old:
            traffic.mark(f"without {pod['metadata']['name']}")
            models.delete("pod", pod["metadata"]["name"])
            eventually(lambda: len(ready_routers(models)) == 2, within_s=60, of="two routers are ready")
        traffic.mark("after")
        eventually(lambda: traffic.count("after") >= 10, within_s=60, of="traffic flows on")
    assert traffic.bad() == [], traffic.report()
    assert not names(old) & names(models.pods("router"))
    settled(models)


def test_reverting_in_the_middle_keeps_the_serving_worker(installation: Installation) -> None:
    models = installation.models
    settled(models)
    (serving,) = ready_workers(models, "tiny")
    engine = models.get("inferencemodel", "tiny")["spec"]["engine"]
    with steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        change(models, engine={"maxModelLen": 512})
        eventually(lambda: len(models.pods("worker", "tiny")) == 2, within_s=30, of="a second worker is starting")
        change(models, engine=engine)
        settled(models)
    assert traffic.bad() == [], traffic.report()
    assert names(ready_workers(models, "tiny")) == {serving["metadata"]["name"]}
    # Deleted before its program has a handler for SIGTERM: else it would hold its cores for the whole grace period.
    eventually(lambda: len(models.all("pods", "pagoda.dev/model=tiny")) == 1, within_s=20, of="the pod that was starting is gone")


def test_a_bad_new_version_never_takes_the_old_one_down_and_says_why(installation: Installation) -> None:
    models = installation.models
    settled(models)
    with steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        change(models, model={"source": "builtin://no-such-model"})

        def named() -> bool:
            condition = models.condition("tiny", "Progressing")
            assert "no-such-model" in condition["message"], condition
            return True

        eventually(named, within_s=90, of="Progressing names the model that is not there")
        assert models.condition("tiny", "Ready")["status"] == "True"
        traffic.mark("stuck")
        eventually(lambda: traffic.count("stuck") >= 10, within_s=60, of="traffic flows on")
        change(models, engine={"maxModelLen": 1024})
        settled(models)
    assert traffic.bad() == [], traffic.report()


def test_a_canary_takes_its_share_and_weight_zero_takes_it_back(installation: Installation) -> None:
    models = installation.models
    small = {"cpu": "400m", "memory": "2Gi"}  # a limit too: with a tenth of a core it would import its libraries for half a minute
    variants = [{"name": "default", "weight": 50}, {"name": "canary", "weight": 50, "engine": {"maxRunning": 8}, "resources": small}]
    with steady_traffic(installation.url, installation.api_key, "tiny") as traffic:
        change(models, engine={"maxModelLen": 1024}, variants=variants)
        eventually(lambda: len(ready_workers(models, "tiny")) == 2, within_s=150, of="both variants are ready")
        settled(models)
        traffic.mark("canary")
        eventually(lambda: traffic.count("canary") >= 20, within_s=60, of="traffic flows")
        shown = {variant["name"]: variant["ready"] for variant in models.get("inferencemodel", "tiny")["status"]["variants"]}
        assert shown == {"default": 1, "canary": 1}
        traffic.mark("rolled back")
        change(models, engine={"maxModelLen": 1024})
        eventually(lambda: len(models.pods("worker", "tiny")) == 1, within_s=60, of="the canary is gone")
        settled(models)
    assert traffic.bad() == [], traffic.report()
