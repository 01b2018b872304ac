"""One round of the loop, the same for every executor: observe → plan → apply → observe again → status. Any event takes this path.

Knows neither processes nor the Kubernetes API; those are executors. Called by local/supervisor.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pagoda_operator.manifests import Settings
from pagoda_operator.observed import Observed
from pagoda_operator.plan import Plan, plan
from pagoda_operator.status import model_status


class Executor(Protocol):
    """Makes plans true somewhere, and says what is there."""

    async def observe(self) -> Observed: ...

    async def apply(self, wanted: Plan) -> None:
        """Carries out the plan's applies and deletes. Returns when they are accepted, not when they have come true."""
        ...


@dataclass(frozen=True, slots=True)
class Round:
    plan: Plan
    documents: tuple[dict[str, Any], ...]
    """The documents given, each with its new status."""


async def reconcile(documents: Sequence[Mapping[str, Any]], executor: Executor, settings: Settings) -> Round:
    wanted = plan(documents, await executor.observe(), settings)
    if not wanted.empty:
        await executor.apply(wanted)
    # status tells of the world after this round's changes, so that nobody reads "Ready" of what was just replaced
    observed = await executor.observe()
    return Round(wanted, tuple({**document, "status": model_status(document, wanted, observed)} for document in documents))
