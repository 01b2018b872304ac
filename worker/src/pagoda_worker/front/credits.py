"""KV-token credits of one model over the connected routers. Pure: no clock, no I/O; the switchboard calls it and sends what changed.

What a session may have in flight is its allowance. All sessions get the same, except that what is already in use is never taken back:

    allowance = max(in use, level)        with the highest level at which the allowances fit into the capacity, less the overrun
    granted   = returned + allowance      cumulative, as the wire wants it (docs/decisions/credits-are-cumulative.md)

The overrun is what running requests really occupy beyond what was reserved for them, as answers do that are longer than predicted: what
they took is promised to nobody else. So the sum of allowances stays within the capacity, `granted` is never below what was spent, and a
second router takes unspent credits only.
"""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

SessionKey = TypeVar("SessionKey", bound=Hashable)


OVERRUN_STEPS = 64
"""The overrun counts in whole steps of so many to the capacity: grants change when much does, not with each block."""


class _Account:
    __slots__ = ("in_use", "returned", "told")

    def __init__(self) -> None:
        self.in_use = 0
        self.returned = 0
        self.told = -1
        """The last total sent; -1 before the first."""


class CreditLedger(Generic[SessionKey]):
    """One account per session. `changes` says what each router must be told next."""

    def __init__(self, capacity_tokens: int = 0) -> None:
        self._capacity = capacity_tokens
        self._overrun = 0
        self._accounts: dict[SessionKey, _Account] = {}
        self._stale = False

    @property
    def in_use_tokens(self) -> int:
        return sum(account.in_use for account in self._accounts.values())

    def set_capacity(self, tokens: int) -> None:
        """Zero while there is no engine: nothing unspent is left then."""
        self._capacity = tokens
        self._overrun = 0
        self._stale = True

    def set_free(self, tokens: int) -> None:
        """KV tokens that nothing occupies now, by the engine's own count, at a moment at or after that of the last `give_back`."""
        step = max(1, self._capacity // OVERRUN_STEPS)
        overrun = max(0, self._capacity - self.in_use_tokens - tokens) // step * step
        self._stale |= overrun != self._overrun
        self._overrun = overrun

    def open(self, session: SessionKey) -> None:
        if session in self._accounts:
            raise ValueError(f"session {session!r} already has an account")
        self._accounts[session] = _Account()
        self._stale = True

    def close(self, session: SessionKey) -> None:
        del self._accounts[session]
        self._stale = True

    def fits(self, session: SessionKey, tokens: int) -> bool:
        """A grant may shrink while a submit is under way, so a session may pass its allowance; all together never pass the capacity.
        Whoever comes second then does not fit, and has been told of its smaller grant when it hears so."""
        assert session in self._accounts
        return self.in_use_tokens + tokens <= self._capacity

    def spend(self, session: SessionKey, tokens: int) -> None:
        self._accounts[session].in_use += tokens
        self._stale = True

    def give_back(self, session: SessionKey, tokens: int) -> None:
        account = self._accounts[session]
        if tokens > account.in_use:
            raise ValueError(f"session {session!r} gives back {tokens} credits and has {account.in_use} in use")
        account.in_use -= tokens
        account.returned += tokens
        self._stale = True

    def refund(self, session: SessionKey, tokens: int) -> None:
        """A submit that never became a request: spent and given back at once."""
        self._accounts[session].returned += tokens
        self._stale = True

    def granted(self, session: SessionKey) -> int:
        account = self._accounts[session]
        return account.returned + max(account.in_use, self._level())

    def changes(self) -> list[tuple[SessionKey, int]]:
        """(session, total) for each total that differs from the one told last; telling counts as done."""
        if not self._stale:
            return []
        self._stale = False
        level = self._level()
        changed = []
        for session, account in self._accounts.items():
            total = account.returned + max(account.in_use, level)
            if total != account.told:
                account.told = total
                changed.append((session, total))
        return changed

    def _level(self) -> int:
        return water_level((account.in_use for account in self._accounts.values()), self._capacity - self._overrun)


def water_level(in_use: Iterable[int], capacity: int) -> int:
    """The highest whole level with sum(max(use, level)) ≤ capacity; 0 when the uses alone fill it."""
    rest = capacity
    uses = sorted(in_use, reverse=True)
    for index, use in enumerate(uses):
        below = len(uses) - index
        if use * below <= rest:
            return rest // below
        rest -= use
    return 0
