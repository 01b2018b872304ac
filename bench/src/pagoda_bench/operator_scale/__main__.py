"""`make bench-operator`: the operator at 1 000 InferenceModels and 5 000 pods, against its aims.

Real: etcd, API server, controller-manager, scheduler, the operator. Fake: the nodes and their pods (kwok), the routers and workers that the
operator asks (fleet.py). The same changes are measured at a small size first, to see growth. All run on this machine at once, so the
operator competes with the API server for its cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pagoda_bench.lifeline import Lifeline, Mark, raise_on_sigterm
from pagoda_bench.operator_scale import measure, report
from pagoda_bench.operator_scale.measure import Model, create, wait
from pagoda_bench.operator_scale.plane import Api, add_nodes, apply_crds, control_plane, run_inside_own_network
from pagoda_bench.operator_scale.process import NAMESPACE, OperatorProcess

RESULTS = Path(__file__).resolve().parents[3] / "results"


def main() -> None:
    raise_on_sigterm()
    parsed = _parser().parse_args()
    run_inside_own_network(sys.argv[1:])
    folder = Path(tempfile.mkdtemp(prefix="pagoda-operator-scale-"))
    try:
        with control_plane(folder / "plane") as facts:
            result = _measure(facts, folder, parsed)
    finally:
        if parsed.keep_logs:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    report.write(parsed.output, result)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--small", type=int, default=20, help="models of the small size")
    parser.add_argument("--replicas", type=int, default=5, help="pods per model")
    parser.add_argument("--namespaces", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--changes", type=int, default=100, help="at full size")
    parser.add_argument("--keep-logs", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "operator-scale.json")
    return parser


def _measure(facts: Mapping[str, Any], folder: Path, parsed: argparse.Namespace) -> dict[str, Any]:
    api = Api(facts)
    apply_crds(facts)
    add_nodes(api, parsed.nodes)
    namespaces = [f"bench-{number:02}" for number in range(parsed.namespaces)]
    for namespace in (NAMESPACE, *namespaces):
        api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    canary = Model(NAMESPACE, "pagoda-canary").document(1)
    canary["metadata"]["labels"] = {"pagoda.dev/canary": "true"}
    api.create(f"{measure.MODELS}/namespaces/{NAMESPACE}/inferencemodels", canary)
    (folder / "facts.json").write_text(json.dumps(dict(facts)))
    mark = Mark.fresh()
    lifeline = Lifeline(mark)
    with (folder / "fleet.log").open("wb") as log:
        command = [sys.executable, "-m", "pagoda_bench.operator_scale.fleet", str(folder / "facts.json")]
        fleet = subprocess.Popen(command, stderr=log, env=os.environ | {mark.name: mark.value})
    started: list[OperatorProcess] = []

    def start(name: str) -> Callable[[], OperatorProcess]:
        def now() -> OperatorProcess:
            started.append(OperatorProcess(facts, name, folder / f"{name}.log", 18080 + 10 * len(started), mark))
            return started[-1]

        return now

    models = [Model(namespaces[number % len(namespaces)], f"model-{number:04}") for number in range(parsed.models)]
    try:
        return _steps(api, start, models, parsed)
    finally:
        for operator in started:
            operator.stop()
        fleet.kill()
        fleet.wait()
        lifeline.close()


def _steps(
    api: Api, start: Callable[[str], Callable[[], OperatorProcess]], models: list[Model], parsed: argparse.Namespace
) -> dict[str, Any]:
    small, replicas = models[: parsed.small], parsed.replicas
    operator = start("operator-a")()
    wait(lambda: operator.leads, "the operator leads", 60, 0.1)
    create(api, small, replicas)
    _grown(api, operator, len(small) * replicas, 300)
    sizes = {"small": _at_size(api, operator, small, small, parsed)}

    _say(f"creating {len(models)} models")
    began = time.monotonic()
    create(api, models[parsed.small :], replicas)
    created_s = time.monotonic() - began
    _grown(api, operator, len(models) * replicas, 1200)
    grown_s = time.monotonic() - began
    restarts = operator.restarts
    every_so_many = max(1, len(models) // parsed.changes)
    sizes["full"] = _at_size(api, operator, models, models[::every_so_many][: parsed.changes], parsed)

    _say("restart")
    memory = [operator.peak_memory_bytes]
    operator.kill()
    restarted, operator = measure.restart(api, start("operator-b"), models[: parsed.small], of_all=len(models), max_model_len=5000)
    wait(lambda: measure.settled(api), "the rollouts after the restart", 300)

    _say("failover")
    standby = start("operator-c")()
    time.sleep(5)
    assert not standby.leads
    memory.append(operator.peak_memory_bytes)
    leads_s, changed_s = measure.failover(api, operator, standby, models[0], max_model_len=6000)
    memory.append(standby.peak_memory_bytes)
    return {
        "command": f"make bench-operator ({parsed.models} models × {replicas} pods, {parsed.namespaces} namespaces, {parsed.nodes} nodes)",
        "size": {"models": parsed.models, "pods": parsed.models * replicas, "small": parsed.small, "namespaces": parsed.namespaces},
        "growth": {"models_created_s": round(created_s, 1), "all_pods_ready_s": round(grown_s, 1), "operator_restarts": restarts},
        "sizes": sizes,
        "restart": asdict(restarted),
        "failover": {"leads_s": leads_s, "changed_child_s": changed_s},
        "peak_memory_mib": max(memory) >> 20,
    }


def _at_size(api: Api, operator: OperatorProcess, present: list[Model], changed: list[Model], parsed: argparse.Namespace) -> dict[str, Any]:
    wait(lambda: measure.settled(api), "all rollouts over", 300)
    _say(f"{len(present)} models: changes")
    made = measure.changes(api, changed, every_s=0.5, max_model_len=4096)
    wait(lambda: measure.settled(api), "the rollouts of the changes", 300)
    _say(f"{len(present)} models: calls")
    cpu, began = operator.cpu_s, time.monotonic()
    calls, idle_calls_per_s = measure.calls_per_change(api, operator, changed[:20], max_model_len=2048, idle_s=20)
    created = measure.Spread.of(
        [measure.new_model(api, Model(changed[0].namespace, f"late-{len(present)}-{n}"), parsed.replicas) for n in range(10)]
    )
    cpu_share = (operator.cpu_s - cpu) / (time.monotonic() - began)
    return {
        "models": len(present),
        "change_s": asdict(measure.Spread.of([change.child for change in made])),
        "accepted_s": asdict(measure.Spread.of([change.accepted for change in made])),
        "new_model_s": asdict(created),
        "api_calls_per_change": calls,
        "api_calls_per_change_total": round(sum(calls.values()), 1),
        "idle_api_calls_per_s": idle_calls_per_s,
        "cores_used": round(cpu_share, 2),
        "memory_mib": operator.memory_bytes >> 20,
    }


def _grown(api: Api, operator: OperatorProcess, pods: int, timeout_s: float) -> None:
    def grown() -> bool:
        operator.keep()
        return measure.ready_pods(api) >= pods

    wait(grown, f"{pods} pods ready", timeout_s, 2.0)
    wait(lambda: operator.leads, "the operator leads again", 60)


def _say(words: str) -> None:
    print(f"operator_scale: {words}", flush=True)


if __name__ == "__main__":
    main()
