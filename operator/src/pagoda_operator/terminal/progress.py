"""Waits for submitted models to be ready and shows how far they are; decides when waiting is in vain. Called by commands.py.

The decision (`verdict`) is pure; the rest polls the supervisor and draws.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.status import Status

from pagoda_operator.observed.terminations import INCURABLE
from pagoda_operator.status.finality import FAILURES_IN_VAIN, FAILURES_OF_CONFIGURATION

POLL_S = 0.1
HOPELESS = frozenset({"ModelNotFound", "Unauthorized", "DiskFull", "SpecInvalid", "NameTaken", "ForeignObject", "HostPathForbidden"})


@dataclass(frozen=True, slots=True)
class Verdict:
    done: bool
    failed: bool
    line: str
    """What to show now."""


def verdict(name: str, state: Mapping[str, Any]) -> Verdict:
    """Of one model, from the supervisor's `get`."""
    document = next((item for item in state["objects"] if item["metadata"]["name"] == name), None)
    if document is None:
        return Verdict(True, True, f"{name} was deleted meanwhile")
    status = document.get("status") or {}
    if status.get("observedGeneration") != document["metadata"]["generation"]:
        return Verdict(False, False, f"{name}: planning")
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    progressing = conditions.get("Progressing", {})
    pods = [pod for pod in state["pods"] if not pod["terminating"] and (pod["model"] == name or pod["component"] == "router")]
    if status.get("ready") in ("True", "Asleep") and progressing.get("reason") == "Settled":
        return Verdict(True, False, f"{name}: ready" if status["ready"] == "True" else f"{name}: asleep until the first request")
    in_vain = status.get("ready") in HOPELESS or any(_in_vain(pod) for pod in pods)
    return Verdict(in_vain, in_vain, f"{name}: {_explain(status, conditions, pods)}")


def wait(names: Sequence[str], get: Callable[[], Mapping[str, Any]], console: Console, timeout_s: float) -> dict[str, Verdict]:
    """By name; one that is not done ran out of time."""
    deadline = time.monotonic() + timeout_s
    shown: dict[str, str] = {}
    with _spinner(console) as spinner:
        while True:
            state = get()
            verdicts = {name: verdict(name, state) for name in names}
            if all(v.done for v in verdicts.values()) or any(v.failed for v in verdicts.values()) or time.monotonic() > deadline:
                return verdicts
            lines = {name: v.line for name, v in verdicts.items() if not v.done}
            if spinner is not None:
                spinner.update("   ".join(lines.values()))
            else:
                for name, line in lines.items():
                    if shown.get(name) != line:
                        console.print(line, markup=False, highlight=False)
                shown = lines
            time.sleep(POLL_S)


def _spinner(console: Console) -> AbstractContextManager[Status | None]:
    return console.status("starting") if console.is_terminal else nullcontext()


def _in_vain(pod: Mapping[str, Any]) -> bool:
    """Only between two lives: one that runs may yet become ready."""
    if pod["phase"] != "Failed":
        return False
    patience = FAILURES_OF_CONFIGURATION if pod["lastExit"] in INCURABLE else FAILURES_IN_VAIN
    return bool(pod["failures"] >= patience)


def _explain(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]], pods: Sequence[Mapping[str, Any]]) -> str:
    for pod in pods:
        if not pod["ready"] and pod["component"] == "router" and pod["message"] and pod["lastExit"] is not None:
            return f"the router: {pod['message']}"
    told = conditions.get("Ready", {})
    if told.get("status") == "True":
        told = conditions.get("Progressing", {})
    accepted = conditions.get("Accepted", {})
    if accepted.get("status") == "False":
        told = accepted
    return str(told.get("message") or told.get("reason") or status.get("ready") or "starting")
