"""Who has been served how much: the counters by which tenants of one class take turns. Pure; the waiting room owns one per class.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): whoever was served least goes next, and a
tenant that comes back is lifted to the least counter of those that wait, so that nobody saves up turns. Within one quantum of service
the tenant whose prompt is warm in a cache goes first (deficit longest prefix match, Cao et al., 2025): the lead of one tenant over
another stays within a quantum and their two dearest requests.
"""

from collections import OrderedDict
from collections.abc import Collection

QUANTUM_TOKENS = 4096
"""Of service. A few prompts: smaller loses the cache between turns, larger makes the others wait for a tenant's whole prefix group."""
MOST_IDLE_TENANTS = 1024
"""Remembered beyond those that wait. A forgotten one comes back at the floor, as a new one does."""


class TenantCounters:
    def __init__(self, quantum_tokens: int = QUANTUM_TOKENS) -> None:
        self._quantum_tokens = quantum_tokens
        self._served: OrderedDict[str, int] = OrderedDict()
        self._floor = 0
        """Where newcomers begin: what the least served of those that wait had been served before its last turn, or more."""

    def served(self, tenant: str) -> int:
        return self._served.get(tenant, self._floor)

    def activate(self, tenant: str, waiting: Collection[str]) -> None:
        """Its first request waits. `waiting`: the tenants that waited before it."""
        if waiting:
            self._floor = max(self._floor, min(self.served(other) for other in waiting))
        self._served[tenant] = max(self.served(tenant), self._floor)
        self._served.move_to_end(tenant)

    def charge(self, tenant: str, tokens: int, *, is_alone: bool = False) -> None:
        """At dispatch the predicted service; negative when less of it was needed. `is_alone`: nobody else waits."""
        served = self.served(tenant)
        if is_alone:
            self._floor = max(self._floor, served)
        self._served[tenant] = served + tokens

    def served_alone(self, tenant: str, tokens: int) -> None:
        """`activate`, `charge` and `forget_idle` of a request for which nobody waited and which waited for nobody."""
        self._floor = served = max(self.served(tenant), self._floor)
        self._served[tenant] = served + tokens
        self._served.move_to_end(tenant)
        self.forget_idle(())

    def turn(self, tenant: str, cached_tokens: int) -> tuple[int, int, int]:
        """Smaller goes first."""
        served = self.served(tenant)
        return served // self._quantum_tokens, -cached_tokens, served

    def forget_idle(self, waiting: Collection[str]) -> None:
        """Keeps memory bounded; cheap when there is nothing to forget."""
        if len(self._served) <= 2 * MOST_IDLE_TENANTS:
            return
        kept = set(waiting)
        for tenant in list(self._served):
            if len(self._served) <= MOST_IDLE_TENANTS:
                return
            if tenant not in kept:
                del self._served[tenant]
