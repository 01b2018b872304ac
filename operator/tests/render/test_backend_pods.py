"""Workers that are somebody else's server: their pods, Services and labels, and the same template as a process of this machine."""

from collections.abc import Mapping
from typing import Any

import pytest
from cases import SETTINGS, inference_model, world

from pagoda_operator.local.machine import PROGRAMS, filled_in, named_programs
from pagoda_operator.local.template import read_deployment, unread_fields
from pagoda_operator.manifest.spec import parse
from pagoda_operator.plan.plan import plan
from pagoda_operator.render.objects import model_objects

HUB = {"source": "hf://Qwen/Qwen3-8B", "tokenSecretRef": {"name": "hub"}, "cache": {"size": "50Gi"}}
IMAGES = {"vllm": "vllm/vllm-openai:v0.32.0", "tgi": "text-generation-inference:3.3.5", "tensorrt-llm": "tensorrt-llm:1.2.0"}


def objects(backend: str, model: Mapping[str, Any] = HUB, **engine: Any) -> dict[str, dict[str, Any]]:
    spec = {
        "model": dict(model),
        "engine": {"backend": backend, "image": IMAGES[backend], **engine},
        "resources": {"gpus": engine.get("tensorParallel", 1)},
    }
    return {document["kind"]: document for document in model_objects(parse(inference_model("chat", spec)), SETTINGS)}


def pod(backend: str, model: Mapping[str, Any] = HUB, **engine: Any) -> dict[str, Any]:
    found: dict[str, Any] = objects(backend, model, **engine)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(backend: str, model: Mapping[str, Any] = HUB, **engine: Any) -> dict[str, Any]:
    (found,) = pod(backend, model, **engine)["containers"]
    assert isinstance(found, dict)
    return found


def environment(of: Mapping[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in of["env"]}


SIZES = {"maxModelLen": 4096, "maxBatchTokens": 2048, "maxRunning": 32}
AT = "--host $(PAGODA_BIND_HOST) --port $(PAGODA_OPENAI_PORT)"
COMMANDS = [
    # backend, engine, command
    (
        "vllm",
        SIZES | {"dtype": "bf16", "prefixCaching": False},
        (
            f"vllm serve $(PAGODA_BACKEND_MODEL) --served-model-name chat {AT} --dtype bfloat16 --max-model-len 4096 "
            "--max-num-batched-tokens 2048 --max-num-seqs 32 --enable-prompt-tokens-details --no-enable-prefix-caching --seed 1"
        ),
    ),
    (
        "tgi",
        SIZES | {"dtype": "fp16"},
        (
            f"text-generation-launcher --model-id $(PAGODA_BACKEND_MODEL) {AT.replace('--host ', '--hostname ')} --dtype float16 "
            "--max-total-tokens 4096 --max-batch-prefill-tokens 2048 --max-concurrent-requests 32 --seed 1"
        ),
    ),
    (
        "tensorrt-llm",
        SIZES,
        f"trtllm-serve $(PAGODA_BACKEND_MODEL) {AT} --max_seq_len 4096 --max_num_tokens 2048 --max_batch_size 32 --seed 1",
    ),
]


@pytest.mark.parametrize(("backend", "engine", "command"), COMMANDS, ids=[case[0] for case in COMMANDS])
def test_the_manifests_fields_become_the_backends_own_arguments(backend: str, engine: dict[str, Any], command: str) -> None:
    found = container(backend, args=["--seed", "1"], **engine)
    assert " ".join(found["command"] + found["args"]) == command
    assert found["image"] == IMAGES[backend]


@pytest.mark.parametrize(
    ("backend", "flag"), [("vllm", "--tensor-parallel-size 2"), ("tgi", "--num-shard 2"), ("tensorrt-llm", "--tp_size 2")]
)
def test_each_backend_hears_of_its_ranks_in_its_own_words(backend: str, flag: str) -> None:
    assert " ".join(container(backend, tensorParallel=2)["args"]).endswith(flag)


@pytest.mark.parametrize("backend", IMAGES)
def test_routers_find_it_by_a_label_and_its_port(backend: str) -> None:
    made = objects(backend)
    for labels in (made["Service"]["metadata"]["labels"], made["Deployment"]["spec"]["template"]["metadata"]["labels"]):
        assert labels["pagoda.dev/backend"] == backend
    assert made["Service"]["spec"]["ports"] == [{"name": "openai", "port": 9000, "targetPort": "openai", "protocol": "TCP"}]
    assert "pagoda.dev/backend" not in made["Service"]["spec"]["selector"], "a Deployment's selector cannot change"


def test_our_own_workers_carry_no_such_label() -> None:
    documents = model_objects(parse(inference_model("tiny")), SETTINGS)
    assert not any("pagoda.dev/backend" in document["metadata"]["labels"] for document in documents)


@pytest.mark.parametrize("backend", IMAGES)
def test_its_health_is_asked_and_it_is_told_to_end_when_routers_have_finished(backend: str) -> None:
    found = container(backend)
    paths = {found[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"/health"}
    drain_s = found["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain_s == SETTINGS.drain_s
    assert pod(backend)["terminationGracePeriodSeconds"] > drain_s
    assert pod(backend)["readinessGates"] == [{"conditionType": "pagoda.dev/routed"}]


@pytest.mark.parametrize("backend", IMAGES)
def test_it_runs_restricted(backend: str) -> None:
    assert pod(backend)["securityContext"]["runAsNonRoot"] is True
    assert container(backend)["securityContext"]["readOnlyRootFilesystem"] is True
    assert container(backend)["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_weights_of_the_hub_are_fetched_by_the_server_itself_into_the_models_cache() -> None:
    found, whole = container("vllm"), pod("vllm")
    env = environment(found)
    assert (env["PAGODA_BACKEND_MODEL"], env["HF_HOME"]) == ("Qwen/Qwen3-8B", "/models")
    assert env["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "chat-cache"}} in whole["volumes"]
    assert {"name": "models", "mountPath": "/models"} in found["volumeMounts"]
    assert "initContainers" not in whole
    assert "NetworkPolicy" in objects("vllm"), "it reaches the hub"


def test_a_folder_of_a_claim_is_mounted_and_named() -> None:
    found = container("tgi", {"source": "pvc://weights/qwen"}, prefixCaching=False)
    env = environment(found)
    assert env["PAGODA_BACKEND_MODEL"] == "/models/pvc/qwen"
    assert env["PREFIX_CACHING"] == "0"
    assert {"name": "model", "mountPath": "/models/pvc", "readOnly": True} in found["volumeMounts"]


@pytest.mark.parametrize("backend", IMAGES)
def test_every_field_of_its_template_is_read_here_or_knowingly_ignored(backend: str) -> None:
    assert unread_fields(objects(backend)["Deployment"]["spec"]["template"]) == []


def test_the_local_process_gets_this_machines_program_ports_and_folder() -> None:
    template = read_deployment(objects("vllm")["Deployment"])
    assert template.ports == {"openai": 9000}
    env = {"PAGODA_BIND_HOST": "127.0.0.1", "PAGODA_OPENAI_PORT": "4321", "PAGODA_BACKEND_MODEL": "/weights"}
    argv = filled_in(template.argv, env)
    assert argv[:8] == ("vllm", "serve", "/weights", "--served-model-name", "chat", "--host", "127.0.0.1", "--port")
    assert argv[8] == "4321"
    assert argv[0] in PROGRAMS


def test_a_name_that_is_nowhere_stays_as_it_is_written() -> None:
    assert filled_in(("$(NOBODY)/x", "$HOME", "$(A)$(A)"), {"A": "b"}) == ("$(NOBODY)/x", "$HOME", "bb")


def test_a_variable_names_a_backends_program() -> None:
    assert named_programs({"PAGODA_VLLM": "/opt/vllm/bin/vllm", "PAGODA_TGI": ""}) == {"vllm": "/opt/vllm/bin/vllm"}


def test_an_edit_from_one_backend_to_another_replaces_the_workers_and_keeps_the_service() -> None:
    before = plan([inference_model("chat", {"model": {"source": "pvc://w/q"}})], world(), SETTINGS)
    spec = {"model": {"source": "pvc://w/q"}, "engine": {"backend": "vllm", "image": IMAGES["vllm"]}}
    after = plan([inference_model("chat", spec)], world(), SETTINGS)
    names = [sorted(f"{one['kind']}/{one['metadata']['name']}" for one in each.apply) for each in (before, after)]
    assert names[0] == names[1]
