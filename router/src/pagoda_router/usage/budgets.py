"""What each key has spent of this month's budget, as one router knows it, and what it holds for requests that run. Pure.

    stored      by all routers, as the database said last
    unstored    by this router, not in the database yet
    held        predicted cost of this router's running requests, less what they have been recorded for already

A request is let through when the three and its own predicted cost stay within the budget. Every hold is released: with nothing running,
`held` is empty. The ledger calls it.
"""

from collections.abc import Iterable, Mapping

from pagoda_router.errors import QuotaSpent
from pagoda_router.keys.key import ApiKey
from pagoda_router.usage.amounts import NOTHING, Amount
from pagoda_router.usage.months import Month, day_of, month_of

NANO = 1_000_000_000


class Budgets:
    def __init__(self, now_unix_s: float) -> None:
        self.month: Month = month_of(now_unix_s)
        self._stored: dict[str, Amount] = {}
        self._unstored: dict[str, Amount] = {}
        self._held: dict[str, Amount] = {}

    def turn(self, now_unix_s: float) -> None:
        """A new month begins with nothing spent; what runs stays held."""
        if not self.month.holds(now_unix_s):
            self.month = month_of(now_unix_s)
            self._stored, self._unstored = {}, {}

    def reserve(self, key: ApiKey, cost: Amount) -> None:
        """Holds it. Raises QuotaSpent, and then nothing is held."""
        held = self._held.get(key.id)
        refusal = refused(key, self.month, self.spent(key.id), held or NOTHING, cost)
        if refusal is not None:
            raise refusal
        self._held[key.id] = cost if held is None else held.plus(cost)

    def release(self, key_id: str, cost: Amount) -> None:
        """Of what was held."""
        held = self.held(key_id)
        if held == cost:
            self._held.pop(key_id, None)
        else:
            self._held[key_id] = held.minus(cost)

    def record(self, key_id: str, used: Amount) -> None:
        """Used now, not stored yet. May be negative: the prompt's tokens were guessed before."""
        self._unstored[key_id] = self._unstored.get(key_id, NOTHING).plus(used)

    def stored(self, month: Month, totals: Mapping[str, Amount], batch: Iterable[tuple[str, Amount]]) -> None:
        """The database has taken `batch` of this router, whose amounts fell into `month`, and says `totals` with it."""
        if month != self.month:
            return
        for key_id, amount in batch:
            left = self._unstored.get(key_id, NOTHING).minus(amount)
            if left == NOTHING:
                self._unstored.pop(key_id, None)
            else:
                self._unstored[key_id] = left
        self._stored = dict(totals)

    def spent(self, key_id: str) -> Amount:
        stored, unstored = self._stored.get(key_id, NOTHING), self._unstored.get(key_id)
        return stored if unstored is None else stored.plus(unstored)

    def held(self, key_id: str) -> Amount:
        return self._held.get(key_id, NOTHING)

    @property
    def is_idle(self) -> bool:
        return not self._held


def refused(key: ApiKey, month: Month, spent: Amount, held: Amount, cost: Amount) -> QuotaSpent | None:
    """None: the cost fits into what is left."""
    tokens, nano_usd = key.monthly_tokens, key.monthly_nano_usd
    if tokens is not None and spent.tokens + held.tokens + cost.tokens > tokens:
        left, ends = tokens - spent.tokens, _ends(month)
        if left <= 0:
            return _quota(
                f"the key {key.prefix}… has used its {tokens} tokens of {month.name}: {ends}; an administrator may raise monthly_tokens"
            )
        return _quota(
            f"the key {key.prefix}… has {left} of its {tokens} tokens of {month.name} left, {held.tokens} of them held for requests "
            f"that run, and this request needs about {cost.tokens}: lower max_tokens, or have monthly_tokens raised; {ends}"
        )
    # What costs nothing may go on: a model without prices is in no budget of dollars.
    if nano_usd is not None and cost.nano_usd and spent.nano_usd + held.nano_usd + cost.nano_usd > nano_usd:
        left, ends = nano_usd - spent.nano_usd, _ends(month)
        if left <= 0:
            return _quota(
                f"the key {key.prefix}… has spent its {_usd(nano_usd)} of {month.name}: {ends}; an administrator may raise monthly_usd"
            )
        return _quota(
            f"the key {key.prefix}… has {_usd(left)} of its {_usd(nano_usd)} of {month.name} left, {_usd(held.nano_usd)} of them held for "
            f"requests that run, and this request costs about {_usd(cost.nano_usd)}: lower max_tokens, or have "
            f"monthly_usd raised; {ends}"
        )
    return None


def _ends(month: Month) -> str:
    return f"a new month begins on {day_of(month.end_unix_s)} (UTC)"


def _quota(message: str) -> QuotaSpent:
    return QuotaSpent(message)


def _usd(nano_usd: int) -> str:
    """At least two digits behind the point, and the first that says something."""
    text = f"{nano_usd / NANO:.9f}".rstrip("0")
    return f"{text}{'0' * (2 - len(text.partition('.')[2]))} USD" if len(text.partition(".")[2]) < 2 else f"{text} USD"
