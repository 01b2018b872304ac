"""Who has been served how much: the counters by which tenants of one class take turns. Pure; the waiting room owns one per class.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024): whoever was served least goes next, and a
tenant that comes back is lifted to the least counter of those that wait, so that nobody saves up turns. Within one quantum of service
the tenant whose prompt is warm in a cache goes first (deficit longest prefix match, Cao et al., 2025): the lead of one tenant over
another stays within a quantum and their two dearest requests.
"""

from collections import OrderedDict
from collections.abc import Iterable

QUANTUM_TOKENS = 4096
"""Of service. A few prompts: smaller loses the cache between turns, larger makes the others wait for a tenant's whole prefix group."""
MOST_IDLE_TENANTS = 1024
"""Remembered beyond those that wait. A forgotten one comes back at the floor, as a new one does."""


class TenantCounters:
    def __init__(self, quantum_tokens: int = QUANTUM_TOKENS) -> None:
        self._quantum_tokens = quantum_tokens
        self._served: OrderedDict[str, int] = OrderedDict()
        self._floor = 0
        """The least counter of those that waited at the last turn: where newcomers begin."""

    def served(self, tenant: str) -> int:
        return self._served.get(tenant, self._floor)

    def activate(self, tenant: str, waiting: Iterable[str]) -> None:
        """Its first request waits. `waiting`: the tenants that waited before it."""
        self.raise_floor(waiting)
        self._served[tenant] = max(self.served(tenant), self._floor)
        self._served.move_to_end(tenant)

    def raise_floor(self, waiting: Iterable[str]) -> None:
        self._floor = max(self._floor, min((self.served(tenant) for tenant in waiting), default=0))

    def charge(self, tenant: str, tokens: int) -> None:
        """At dispatch the predicted service; negative when less of it was needed."""
        self._served[tenant] = self.served(tenant) + tokens

    def turn(self, tenant: str, cached_tokens: int) -> tuple[int, int, int]:
        """Smaller goes first."""
        served = self.served(tenant)
        return served // self._quantum_tokens, -cached_tokens, served

    def forget_idle(self, waiting: Iterable[str]) -> None:
        """Keeps memory bounded; cheap when there is nothing to forget."""
        if len(self._served) <= 2 * MOST_IDLE_TENANTS:
            return
        kept = set(waiting)
        for tenant in list(self._served):
            if len(self._served) <= MOST_IDLE_TENANTS:
                return
            if tenant not in kept:
                del self._served[tenant]
