"""From a planned pod template to a local process: what is read, what is knowingly ignored, what this machine puts in its place."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from cases import SETTINGS, inference_model, world

from pagoda_operator.local.errors import UnknownTemplate
from pagoda_operator.local.machine import Choices, Machine, identity, inherited_environment, process_environment, router_settings
from pagoda_operator.local.template import IGNORED, READ, PodTemplate, SecretKey, read_deployment, unread_fields
from pagoda_operator.plan.plan import plan

FULL_SPEC = {
    "model": {"source": "builtin://tiny"},
    "engine": {"dtype": "bf16", "maxModelLen": 2048, "kvCache": {"blockSize": 32}},
    "resources": {"gpus": 1, "cpu": "2", "memory": "4Gi"},
    "scaling": {"min": 2, "max": 2},
}


def deployments(spec: Mapping[str, Any] = FULL_SPEC) -> dict[str, dict[str, Any]]:
    planned = plan([inference_model("tiny", spec)], world(), SETTINGS).apply
    return {document["metadata"]["name"]: document for document in planned if document["kind"] == "Deployment"}


def template(name: str, **changes: Any) -> PodTemplate:
    document = deployments()[name]
    document["spec"]["template"]["spec"]["containers"][0].update(changes)
    return read_deployment(document)


def machine(**choices: Any) -> Machine:
    return Machine(
        choices=Choices(**choices),
        home="/home",
        fleet_file="/home/fleet.json",
        cache_dir="/home/cache",
        run_id="r-1",
        log_level=None,
        inherited={"PATH": "/bin"},
    )


def secret(key: SecretKey) -> str | None:
    return None if key.optional else f"{key.secret}-value"


def environment(of: PodTemplate, on: Machine) -> dict[str, str]:
    return process_environment(of, on, pod_name="pod-0", ports={port: port + 40_000 for port in of.ports.values()}, secret=secret)


@pytest.mark.parametrize("name", ["tiny-default", "pagoda-router"])
def test_every_field_of_a_planned_template_is_read_or_knowingly_ignored(name: str) -> None:
    assert unread_fields(deployments()[name]["spec"]["template"]) == []


def test_a_field_nobody_knows_is_noticed() -> None:
    document = deployments()["tiny-default"]["spec"]["template"]
    document["spec"]["hostNetwork"] = True
    document["spec"]["containers"][0]["lifecycle"] = {"postStart": {"sleep": {"seconds": 1}}}
    assert unread_fields(document) == ["spec.containers[].lifecycle.postStart.sleep.seconds", "spec.hostNetwork"]


def test_no_field_is_both_read_and_ignored() -> None:
    assert not set(READ) & set(IGNORED)


def test_a_worker_listens_on_loopback_on_its_own_ports_with_this_machines_device() -> None:
    env = environment(template("tiny-default"), machine(device="auto", host="0.0.0.0"))
    assert env["PAGODA_BIND_HOST"] == "127.0.0.1"
    assert env["PAGODA_GRPC_PORT"] == "49000"
    assert env["PAGODA_HTTP_PORT"] == "49001"
    assert env["PAGODA_DEVICE"] == "auto"
    assert env["PAGODA_SESSION_TOKEN"] == "pagoda-session-value"
    assert env["PAGODA_POD_NAME"] == "pod-0"
    assert env["PAGODA_RUN_ID"] == "r-1"
    assert env["PAGODA_MODEL_SOURCE"] == "builtin://tiny"


def test_a_router_listens_where_it_was_told_and_reads_this_machines_fleet() -> None:
    env = environment(template("pagoda-router"), machine(host="0.0.0.0", port=1234))
    assert env["PAGODA_BIND_HOST"] == "0.0.0.0"
    assert env["PAGODA_FLEET_FILE"] == "/home/fleet.json"
    assert env["PAGODA_CACHE_DIR"] == "/home/cache"
    assert "PAGODA_API_KEY" not in env
    assert "PAGODA_DEVICE" not in env


def test_a_router_gets_the_settings_that_are_meant_for_it_and_keeps_this_machines_ports() -> None:
    settings = router_settings(
        {
            "PAGODA_ROUTER_DATABASE": "postgresql://a/b",
            "PAGODA_ROUTER_HTTP_PORT": "1",
            "PAGODA_ROUTER_BIND_HOST": "0.0.0.0",
            "PAGODA_HOME": "/",
        }
    )
    on = replace(machine(), router_settings=settings)
    env = environment(template("pagoda-router"), on)
    assert env["PAGODA_DATABASE"] == "postgresql://a/b"
    assert env["PAGODA_HTTP_PORT"] != "1"
    assert env["PAGODA_BIND_HOST"] == "127.0.0.1"
    assert "PAGODA_DATABASE" not in environment(template("tiny-default"), on)
    assert identity(template("pagoda-router"), on, secret) != identity(template("pagoda-router"), machine(), secret)


@pytest.mark.parametrize(
    ("name", "change", "replaced"),
    [
        ("tiny-default", {}, False),
        ("tiny-default", {"port": 8001}, False),
        ("tiny-default", {"host": "0.0.0.0"}, False),
        ("tiny-default", {"device": "cpu"}, True),
        ("pagoda-router", {"device": "cpu"}, False),
        ("pagoda-router", {"port": 8001}, True),
        ("pagoda-router", {"host": "0.0.0.0"}, True),
    ],
)
def test_a_process_is_replaced_only_for_choices_that_concern_it(name: str, change: dict[str, Any], replaced: bool) -> None:
    before = identity(template(name), machine(), secret)
    assert (identity(template(name), machine(**change), secret) != before) is replaced


def test_a_new_secret_replaces_the_process() -> None:
    of = template("pagoda-router")
    assert identity(of, machine(), secret) != identity(of, machine(), lambda key: "other")


def test_probes_are_read_with_their_patience() -> None:
    worker = template("tiny-default")
    assert worker.readiness is not None
    assert worker.readiness.path == "/ready"
    assert worker.readiness.port == 9001
    assert worker.liveness is not None
    assert worker.liveness.path == "/health"
    assert worker.startup is not None
    assert worker.startup.patience_s >= 60
    assert worker.grace_s > 30


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"livenessProbe": {"exec": {"command": ["true"]}}}, "not httpGet"),
        ({"env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]}, "NODE"),
    ],
)
def test_what_no_process_can_do_is_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnknownTemplate, match=complaint):
        template("tiny-default", **changes)


def test_only_listed_variables_of_the_users_shell_reach_a_process() -> None:
    shell = {"PATH": "/bin", "HF_HOME": "/hf", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C"}
    assert inherited_environment({**shell, "PAGODA_HOME": "/x", "AWS_SECRET_ACCESS_KEY": "s", "HTTP_PROXY": "http://p"}) == shell
