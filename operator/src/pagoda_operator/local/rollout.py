"""Which pods to start and which to end, one step at a time. Pure: called by executor.py after every change until nothing is left to do.

surge      start one new pod beyond the wanted number, end an old one for every new one that is ready: never fewer ready than wanted
replace    end one old pod, start its successor when it is gone, go on when that is ready: for machines without room for one more
recreate   end all old pods first, start new ones when the old are gone: for what exists once (the router's port, a whole GPU)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_SURGE = 1
MAX_UNAVAILABLE = 1
"""Without surge."""


@dataclass(frozen=True, slots=True)
class Wanted:
    replicas: int
    template: str
    """Hash of the pod template and of what this machine adds to it."""
    recreate: bool = False
    surge: int = MAX_SURGE


@dataclass(frozen=True, slots=True)
class PodFacts:
    name: str
    deployment: str
    template: str
    ready: bool
    ending: bool = False


@dataclass(frozen=True, slots=True)
class Steps:
    start: tuple[str, ...] = ()
    """Deployments, once for each pod to start."""
    end: tuple[str, ...] = ()
    """Pods."""


def next_steps(wanted: Mapping[str, Wanted], pods: Sequence[PodFacts]) -> Steps:
    start: list[str] = []
    end: list[str] = []
    for deployment in sorted({*wanted, *(pod.deployment for pod in pods)}):
        mine = [pod for pod in pods if pod.deployment == deployment]
        steps = _recreate(deployment, wanted[deployment], mine) if _is_recreate(wanted, deployment) else _surge(deployment, wanted, mine)
        start += steps.start
        end += steps.end
    return Steps(tuple(start), tuple(end))


def _is_recreate(wanted: Mapping[str, Wanted], deployment: str) -> bool:
    return deployment in wanted and wanted[deployment].recreate


def _recreate(deployment: str, want: Wanted, pods: Sequence[PodFacts]) -> Steps:
    old = [pod for pod in pods if pod.template != want.template]
    current = [pod for pod in pods if pod.template == want.template and not pod.ending]
    excess = _least_useful(current)[: max(0, len(current) - want.replicas)]
    end = tuple(pod.name for pod in [*old, *excess] if not pod.ending)
    room = want.replicas - len(current) if not old and all(not pod.ending for pod in pods) else 0
    return Steps((deployment,) * max(0, room), end)


def _surge(deployment: str, wanted: Mapping[str, Wanted], pods: Sequence[PodFacts]) -> Steps:
    want = wanted.get(deployment, Wanted(0, ""))
    living = [pod for pod in pods if not pod.ending]
    current = [pod for pod in living if pod.template == want.template]
    old = [pod for pod in living if pod.template != want.template]

    excess = _least_useful(current)[: max(0, len(current) - want.replicas)]
    ready = sum(pod.ready for pod in living) - sum(pod.ready for pod in excess)
    end = list(excess)
    enough = want.replicas if want.surge else want.replicas - MAX_UNAVAILABLE
    for pod in _least_useful(old):
        # a pod that is not ready serves nobody: ending it frees its place and cannot hurt
        if not pod.ready or ready > enough or want.replicas == 0:
            end.append(pod)
            ready -= pod.ready
    # without room for one more, a pod that ends holds its place until it is gone
    kept = len(living) - len(end) if want.surge else len(pods)
    missing = max(0, want.replicas - len(current))
    start = min(missing, max(0, want.replicas + want.surge - kept)) if old or not want.surge else missing
    return Steps((deployment,) * start, tuple(pod.name for pod in end))


def _least_useful(pods: Sequence[PodFacts]) -> list[PodFacts]:
    """Not ready before ready, then the highest names."""
    return sorted(sorted(pods, key=lambda pod: pod.name, reverse=True), key=lambda pod: pod.ready)
