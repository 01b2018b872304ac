"""Rollout steps of the local executor: tables for each situation, a simulation for the promises."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_operator.local.rollout import PodFacts, Steps, Wanted, next_steps


def pod(name: str, template: str = "a", *, ready: bool = True, ending: bool = False, deployment: str = "w") -> PodFacts:
    return PodFacts(name, deployment, template, ready, ending)


SITUATIONS = {
    "nothing runs": ([], Wanted(2, "a"), Steps(("w", "w"))),
    "as wanted": ([pod("w-0"), pod("w-1", ready=False)], Wanted(2, "a"), Steps()),
    "one too many: the one that serves nobody goes": ([pod("w-0", ready=False), pod("w-1")], Wanted(1, "a"), Steps(end=("w-0",))),
    "one too many: the highest name goes": ([pod("w-0"), pod("w-1")], Wanted(1, "a"), Steps(end=("w-1",))),
    "new template: first a new pod": ([pod("w-0")], Wanted(1, "b"), Steps(("w",))),
    "new template: the old serves while the new loads": ([pod("w-0"), pod("w-1", "b", ready=False)], Wanted(1, "b"), Steps()),
    "new template: the new is ready, the old goes": ([pod("w-0"), pod("w-1", "b")], Wanted(1, "b"), Steps(end=("w-0",))),
    "new template: a crashed old pod goes at once": ([pod("w-0", ready=False)], Wanted(1, "b"), Steps(("w",), ("w-0",))),
    "new template: one at a time": ([pod("w-0"), pod("w-1")], Wanted(2, "b"), Steps(("w",))),
    "an ending pod is not ended twice": ([pod("w-0", ending=True)], Wanted(0, "a"), Steps()),
    "an ending pod is replaced at once": ([pod("w-0", ending=True)], Wanted(1, "a"), Steps(("w",))),
    "scaled to zero": ([pod("w-0")], Wanted(0, "a"), Steps(end=("w-0",))),
    "replace: the old goes first": ([pod("w-0")], Wanted(1, "b", surge=0), Steps(end=("w-0",))),
    "replace: waits while the old drains": ([pod("w-0", ending=True)], Wanted(1, "b", surge=0), Steps()),
    "replace: starts when it is gone": ([], Wanted(1, "b", surge=0), Steps(("w",))),
    "replace: one of two at a time": ([pod("w-0"), pod("w-1")], Wanted(2, "b", surge=0), Steps(end=("w-1",))),
    "replace: the second waits for the first's successor": ([pod("w-0"), pod("w-1", "b", ready=False)], Wanted(2, "b", surge=0), Steps()),
    "recreate: the old goes first": ([pod("w-0")], Wanted(1, "b", recreate=True), Steps(end=("w-0",))),
    "recreate: waits while the old drains": ([pod("w-0", ending=True)], Wanted(1, "b", recreate=True), Steps()),
    "recreate: starts when it is gone": ([], Wanted(1, "b", recreate=True), Steps(("w",))),
}


@pytest.mark.parametrize(("pods", "wanted", "steps"), SITUATIONS.values(), ids=SITUATIONS.keys())
def test_each_situation_has_its_steps(pods: list[PodFacts], wanted: Wanted, steps: Steps) -> None:
    assert next_steps({"w": wanted}, pods) == steps


def test_pods_of_a_deployment_that_is_gone_end() -> None:
    assert next_steps({}, [pod("w-0"), pod("x-0", deployment="x", ready=False)]) == Steps(end=("w-0", "x-0"))


@given(
    old=st.lists(st.booleans(), max_size=4),
    replicas=st.integers(0, 4),
    recreate=st.booleans(),
    surge=st.integers(0, 1),
    order=st.randoms(use_true_random=False),
)
def test_a_rollout_converges_and_never_gives_up_readiness_that_it_has(
    old: list[bool], replicas: int, recreate: bool, surge: int, order
) -> None:
    wanted = {"w": Wanted(replicas, "new", recreate, surge)}
    pods = [pod(f"w-{i}", "old", ready=ready) for i, ready in enumerate(old)]
    names = (f"w-{i}" for i in itertools.count(len(old)))
    at_first = sum(old)
    for _ in range(200):
        steps = next_steps(wanted, pods)
        pods = [replace(p, ending=p.ending or p.name in steps.end) for p in pods] + [
            pod(next(names), "new", ready=False) for _ in steps.start
        ]
        living = [p for p in pods if not p.ending]
        if not recreate:
            assert sum(p.ready for p in living) >= min(replicas, at_first) - (0 if surge else 1)
            assert len(living if surge else pods) <= max(replicas + surge, len(old))
        else:
            assert len([p for p in pods if p.template == "new"]) == 0 or all(p.template == "new" for p in pods)
        # the world moves one pod at a time: one that ends is gone, one that loads is ready
        moving = [p for p in pods if p.ending or not p.ready]
        if not moving and steps == Steps():
            break
        if moving:
            mover = order.choice(moving)
            pods.remove(mover)
            if not mover.ending:
                pods.append(replace(mover, ready=True))
    assert [(p.template, p.ready) for p in pods] == [("new", True)] * replicas
