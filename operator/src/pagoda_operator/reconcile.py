"""One round of the loop, the same for every executor: observe → plan → apply → scale → observe again → status. Any event takes this path.

Knows neither processes nor the Kubernetes API; those are executors. Called by local/supervisor.py for the whole world at once, by
cluster/loop.py for one namespace or one model at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pagoda_operator.manifest.spec import InferenceModel, key_of
from pagoda_operator.observed.world import ObjectRef, Observed
from pagoda_operator.plan.plan import Plan, is_ours, plan
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.objects import worker_name
from pagoda_operator.scaling.decide import ScalingDecision
from pagoda_operator.scaling.history import ScalingHistory
from pagoda_operator.status.model_status import model_status


class Executor(Protocol):
    """Makes plans true somewhere, and says what is there."""

    async def observe(self) -> Observed: ...

    async def apply(self, wanted: Plan) -> None:
        """Carries out the plan's applies and deletes. Returns when they are accepted, not when they have come true."""
        ...

    async def scale(self, ref: ObjectRef, replicas: int) -> bool:
        """Writes one worker Deployment's spec.replicas. False: it was refused, or the Deployment is not ours."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    plan: Plan
    documents: tuple[dict[str, Any], ...]
    """The documents given, each with its new status."""


@dataclass(frozen=True, slots=True)
class Outcome:
    done: Plan
    """What was carried out."""
    present: Plan
    """What would be done next: empty, but for what was refused. Its conflicts are those found on the way too."""
    observed: Observed
    """The world after this round's changes, so that nobody reads "Ready" of what was just replaced."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """One step of the scaler."""

    ref: ObjectRef
    variant: str
    before: int
    decision: ScalingDecision


async def carry_out(planner: Callable[[Observed], Plan], executor: Executor) -> Outcome:
    observed = await executor.observe()
    wanted = planner(observed)
    if wanted.empty:
        return Outcome(wanted, wanted, observed)
    await executor.apply(wanted)
    after = await executor.observe()
    return Outcome(wanted, planner(after), after)


def scalings(model: InferenceModel, observed: Observed, history: ScalingHistory, at_s: float) -> list[Scaling]:
    """What the scaler would change now. Also remembers the demand that was observed."""
    refs = {variant.name: ObjectRef("Deployment", model.namespace, worker_name(model.name, variant.name)) for variant in model.variants}
    live = {name: observed.objects[ref] for name, ref in refs.items() if ref in observed.objects and is_ours(observed.objects[ref])}
    current = {name: int(deployment["spec"].get("replicas", 1)) for name, deployment in live.items()}
    decided = history.decide(model, current, observed, at_s)
    return [Scaling(refs[name], name, current[name], decision) for name, decision in decided.items() if decision.replicas != current[name]]


async def scale(
    models: Iterable[InferenceModel],
    outcome: Outcome,
    executor: Executor,
    history: ScalingHistory,
    at_s: float,
    done: Callable[[Scaling], None] = lambda step: None,
) -> Outcome:
    """Gives each worker Deployment the replicas that demand asks for. Returns the outcome with the world after it. `done` hears of each
    step that was carried out; one that the API server refused is not remembered as a decision."""
    changed = False
    for model in models:
        for step in scalings(model, outcome.observed, history, at_s):
            changed = True
            if await executor.scale(step.ref, step.decision.replicas):
                history.record(model.key, step.variant, step.before, step.decision, outcome.observed.now)
                done(step)
    return replace(outcome, observed=await executor.observe()) if changed else outcome


async def reconcile(
    documents: Sequence[Mapping[str, Any]],
    executor: Executor,
    settings: Settings,
    history: ScalingHistory | None = None,
    at_s: float = 0.0,
) -> Round:
    """The whole world. `at_s`: a monotonic clock's; without a history nothing is scaled."""
    outcome = await carry_out(lambda observed: plan(documents, observed, settings), executor)
    if history is not None:
        outcome = await scale(outcome.present.models, outcome, executor, history, at_s)
    stated = []
    for document in documents:
        decisions = history.decisions(key_of(document)) if history is not None else ()
        stated.append({**document, "status": model_status(document, outcome.present, outcome.observed, decisions)})
    return Round(outcome.done, tuple(stated))
