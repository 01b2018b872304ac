"""From the measured numbers to bench/results/operator-scale.{json,md}: each aim with what was measured beside it, met or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagoda_bench import results
from pagoda_bench.results import Result, Row, result_here

SYSTEM = "pagoda-operator"
PACKAGES = ("pagoda-operator", "kopf", "kubernetes", "aiohttp")
NOTES = ("etcd, API server, controller-manager, scheduler and operator are real and share the cores; nodes and pods are kwok's",)
GROWTH = 1.5
"""How much slower the median change may be at full size: the API server itself answers later when it holds fifty times the objects."""


def aims(result: dict[str, Any]) -> list[Row]:
    small, full, restart, failover = (*(result["sizes"][size] for size in ("small", "full")), result["restart"], result["failover"])
    growth = round(full["change_s"]["p50"] / small["change_s"]["p50"], 2)
    calls = round(full["api_calls_per_change_total"] / small["api_calls_per_change_total"], 2)
    models = _case(full)
    return [
        _aim(models, "change_p99_s", full["change_s"]["p99"], "s", below=2),
        _aim(f"{models} ÷ {_case(small)}", "change_p50_ratio", growth, "ratio", below=GROWTH),
        _aim(f"{models} ÷ {_case(small)}", "api_calls_per_change_ratio", calls, "ratio", below=1.2),
        _aim("killed and started again", "converged_s", restart["converged_s"], "s", below=60),
        _aim(models, "peak_memory_mib", result["peak_memory_mib"], "MiB", below=512),
        _aim("leader killed, standby there", "leads_s", failover["leads_s"], "s", below=15),
        _aim("leader killed, standby there", "changed_child_s", failover["changed_child_s"], "s", below=15),
    ]


def rows(result: dict[str, Any]) -> list[Row]:
    """Those with aims first."""
    growth, restart = result["growth"], result["restart"]
    found = [*aims(result), *(row for size in result["sizes"].values() for row in _rows_of(size))]
    found += [
        _row("all created", "models_created_s", growth["models_created_s"], "s"),
        _row("all created", "all_pods_ready_s", growth["all_pods_ready_s"], "s"),
        _row("all created", "operator_restarts", growth["operator_restarts"], "restarts"),
        _row("killed and started again", "leads_s", restart["leads_s"], "s"),
        _row("killed and started again", "changed_children_s", restart["changed_children_s"], "s"),
        _row("killed and started again", "memory_mib", restart["memory_mib"], "MiB"),
    ]
    told = {row.key for row in found if row.aim}
    return [row for row in found if row.aim or row.key not in told]


def _rows_of(size: dict[str, Any]) -> Iterator[Row]:
    case = _case(size)
    for what in ("change", "accepted", "new_model"):
        for rank in ("p50", "p99", "worst"):
            yield _row(case, f"{what}_{rank}_s", size[f"{what}_s"][rank], "s")
    yield _row(case, "api_calls_per_change", size["api_calls_per_change_total"], "calls")
    yield _row(case, "idle_api_calls_per_s", size["idle_api_calls_per_s"], "calls/s")
    yield _row(case, "cores_used", size["cores_used"], "cores")
    yield _row(case, "memory_mib", size["memory_mib"], "MiB")


def _case(size: dict[str, Any]) -> str:
    return f"{size['models']} models"


def _aim(case: str, metric: str, value: float, unit: str, *, below: float) -> Row:
    return Row(case=case, system=SYSTEM, metric=metric, value=value, unit=unit, aim=f"< {below:g}", met=value < below)


def _row(case: str, metric: str, value: float, unit: str) -> Row:
    return Row(case=case, system=SYSTEM, metric=metric, value=value, unit=unit)


def write(path: Path, measured: dict[str, Any]) -> None:
    """`measured`: what __main__ put together; its `command` is what a reader types."""
    result = result_here("operator-scale", rows(measured), command=measured["command"], packages=PACKAGES, notes=NOTES)
    results.write(result, path)
    path.with_suffix(".md").write_text(markdown(measured, result))
    print(path.with_suffix(".md").read_text())


def markdown(measured: dict[str, Any], result: Result) -> str:
    hardware = result.hardware
    packages = ", ".join(f"{name} {version}" for name, version in hardware["packages"].items())
    machine = f"{hardware['cpu']}, {hardware['cores']} cores ({' '.join(hardware['flags'])})"
    aimed = [
        f"| {row.case} | {row.metric} | {row.aim} | {row.value:g} | {'yes' if row.met else '**no**'} |" for row in result.rows if row.aim
    ]
    sizes = [_size(size) for size in measured["sizes"].values()]
    calls = measured["sizes"]["full"]["api_calls_per_change"]
    restart, failover, growth = measured["restart"], measured["failover"], measured["growth"]
    return "\n".join(
        [
            "# The operator at scale",
            "",
            f"`{result.command}` · {machine}, {packages}, commit {result.commit}, {result.date}",
            "",
            "etcd, API server, controller-manager, scheduler and the operator are real and share the cores above; nodes and pods are",
            "kwok's; routers and workers are a process that answers every pod's address, two routers per namespace, each second.",
            "",
            "| case | metric | aim | measured | met |",
            "|---|---|---:|---:|---|",
            *aimed,
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
