"""How the end-to-end tests know who talked: from entries of the kernel's table and pods that come and go. Needs no cluster."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "e2e"))
from flows import Recorder, read

ROUTER, WORKER, NEXT, NODE = "10.66.0.2", "10.66.0.3", "10.66.0.4", "10.55.0.1"
ENTRY = "ipv4 2 tcp 6 86389 ESTABLISHED src={} dst=10.96.0.9 sport=4242 dport=80 src={} dst={} sport={} dport=4242 [ASSURED] mark=0 use=2"


def entry(source: str, target: str, port: int) -> str:
    return ENTRY.format(source, target, source, port)


def pod(name: str, address: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "models", "uid": f"uid of {name}", "labels": {"app": name}}
    return {"kind": "Pod", "metadata": metadata, "spec": {"containers": []}, "status": {"podIP": address}}


def told(recorder: Recorder) -> list[list[str]]:
    return [[str(flow) for flow in flows] for flows in recorder.flows()]


def test_an_entry_names_the_pod_that_answered_and_not_the_service() -> None:
    recorder = Recorder(seen=read(entry(ROUTER, WORKER, 9000)))
    recorder.learn([pod("router", ROUTER), pod("worker", WORKER)])
    assert told(recorder) == [["models/router → models/worker:9000/TCP"]]


def test_an_address_that_is_given_out_again_leaves_open_which_pod_it_was() -> None:
    recorder = Recorder(seen=read(entry(ROUTER, WORKER, 9000)))
    recorder.learn([pod("router", ROUTER), pod("worker", WORKER)])
    recorder.learn([pod("router", ROUTER), pod("stranger", WORKER)])
    assert told(recorder) == [["models/router → models/worker:9000/TCP", "models/router → models/stranger:9000/TCP"]]
    assert sorted(each.name for each in recorder.everybody()) == ["router", "stranger", "worker"]


def test_what_the_node_began_and_what_led_to_an_unknown_pod_is_left_out_and_the_outside_is_not() -> None:
    recorder = Recorder(seen=read("\n".join((entry(NODE, WORKER, 9001), entry(ROUTER, NEXT, 9000), entry(ROUTER, NODE, 6443)))))
    recorder.learn([pod("router", ROUTER), pod("worker", WORKER)])
    assert told(recorder) == [["models/router → 10.55.0.1:6443/TCP"]]
