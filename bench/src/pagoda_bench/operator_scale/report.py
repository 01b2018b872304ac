"""From the measured numbers to bench/results/operator-scale.{json,md}: each aim with what was measured beside it, met or not."""

import json
from pathlib import Path
from typing import Any

from pagoda_bench.hardware import Hardware

GROWTH = 1.5
"""How much slower the median change may be at full size: the API server itself answers later when it holds fifty times the objects."""


def aims(result: dict[str, Any]) -> list[dict[str, Any]]:
    small, full, restart = result["sizes"]["small"], result["sizes"]["full"], result["restart"]
    growth = round(full["change_s"]["p50"] / small["change_s"]["p50"], 2)
    calls = round(full["api_calls_per_change_total"] / small["api_calls_per_change_total"], 2)
    return [
        _aim(
            f"p99 of one change of a spec until its child, {full['models']} models, s",
            "< 2",
            full["change_s"]["p99"],
            full["change_s"]["p99"] < 2,
        ),
        _aim("median at full size over median at small size", f"< {GROWTH}", growth, growth < GROWTH),
        _aim("API calls per change at full size over small size", "< 1.2", calls, calls < 1.2),
        _aim("start to converged after a kill, the Lease's end included, s", "< 60", restart["converged_s"], restart["converged_s"] < 60),
        _aim("peak memory of one operator, MiB", "< 512", result["peak_memory_mib"], result["peak_memory_mib"] < 512),
        _aim("kill of the leader until the standby leads, s", "< 15", result["failover"]["leads_s"], result["failover"]["leads_s"] < 15),
    ]


def _aim(what: str, aim: str, measured: float, met: bool) -> dict[str, Any]:
    return {"what": what, "aim": aim, "measured": measured, "met": met}


def write(path: Path, result: dict[str, Any], hardware: Hardware) -> None:
    document = {"aims": aims(result), **result}
    path.write_text(json.dumps(document, indent=2) + "\n")
    path.with_suffix(".md").write_text(_markdown(document, hardware))
    print(path.with_suffix(".md").read_text())


def _markdown(result: dict[str, Any], hardware: Hardware) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in hardware.packages.items())
    rows = [f"| {aim['what']} | {aim['aim']} | {aim['measured']} | {'yes' if aim['met'] else '**no**'} |" for aim in result["aims"]]
    sizes = [_size(size) for size in result["sizes"].values()]
    calls = result["sizes"]["full"]["api_calls_per_change"]
    restart, failover, growth = result["restart"], result["failover"], result["growth"]
    return "\n".join(
        [
            "# The operator at scale",
            "",
            f"`{result['command']}` · {hardware.line()}, {packages}, commit {hardware.commit}, {hardware.date}",
            "",
            "etcd, API server, controller-manager, scheduler and the operator are real and share the cores above; nodes and pods are",
            "kwok's; routers and workers are a process that answers every pod's address, two routers per namespace, each second.",
            "",
            "| what | aim | measured | met |",
            "|---|---:|---:|---|",
            *rows,
            "",
            "A change is a new `maxModelLen`; the clock stops when a watcher is told the worker Deployment's new template. Accepted: the",
            "API server has answered, and the operator has not heard of it yet. Changes follow each other by half a second, so that",
            "several rollouts of five pods are always under way.",
            "",
            "| models | change p50 | p99 | worst | accepted p50 | new model p50 | calls per change | calls/s idle | cores used | memory |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *sizes,
            "",
            "Calls of one change, to the end of its rollout of five pods: "
            + ", ".join(f"{name} {count:g}" for name, count in calls.items())
            + ".",
            "",
            f"Creating all models took {growth['models_created_s']} s; all pods were ready {growth['all_pods_ready_s']} s after the start;",
            f"meanwhile the operator ended for want of its Lease, and was started again, {growth['operator_restarts']} times.",
            f"After a kill with specs changed meanwhile: leads after {restart['leads_s']} s, changed children after",
            f"{restart['changed_children_s']} s, every model reconciled after {restart['converged_s']} s. Failover: leads after",
            f"{failover['leads_s']} s, a spec changed at the kill is in its Deployment after {failover['changed_child_s']} s.",
            "",
        ]
    )


def _size(size: dict[str, Any]) -> str:
    change, new = size["change_s"], size["new_model_s"]
    cells = [
        *(f"{change[key] * 1000:.0f} ms" for key in ("p50", "p99", "worst")),
        f"{size['accepted_s']['p50'] * 1000:.0f} ms",
        f"{new['p50'] * 1000:.0f} ms",
        *(size[key] for key in ("api_calls_per_change_total", "idle_api_calls_per_s", "cores_used")),
        f"{size['memory_mib']} MiB",
    ]
    return f"| {size['models']} | " + " | ".join(str(cell) for cell in cells) + " |"
