"""One request's account with its key: what it has reserved, what it has used so far, what its client is told of limits.

app.py opens and closes it, openai/ reserves on it once the prompt is counted. The ledger does the sums.
"""

from collections.abc import Callable
from typing import Protocol

from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.limits import Told
from pagoda_router.usage.amounts import NOTHING, Amount, Used


class Reservation:
    """Of a minute's tokens, which is settled at the end, and of the month's budget, which becomes spending as tokens are sent."""

    __slots__ = ("_cost", "held", "lease", "minute_tokens")

    def __init__(self, minute_tokens: int = 0, cost: Amount = NOTHING) -> None:
        self.minute_tokens = minute_tokens
        self._cost = cost
        self.held = cost
        self.lease: str | None = None
        """Under which Redis holds the same. None: it does not."""

    def release(self, used: Amount) -> Amount:
        """What need not be held any more, as so much is spent."""
        still = Amount(max(0, self._cost.tokens - used.tokens), max(0, self._cost.nano_usd - used.nano_usd)).up_to(self.held)
        released, self.held = self.held.minus(still), still
        return released

    def release_all(self) -> Amount:
        released, self.held = self.held, NOTHING
        return released


class Keeper(Protocol):
    """The ledger, as an account sees it."""

    async def reserve(
        self, key: ApiKey, model: str, prompt_tokens: int, output_tokens: int, tell: Callable[[Told], None], *, again: bool
    ) -> Reservation: ...

    def release(self, account: "Account") -> None: ...

    def settle(self, account: "Account") -> None: ...


class Account:
    __slots__ = (
        *("_expected_prompt_tokens", "_headers", "_keeper", "_own_headers"),
        *("is_counted", "is_limited", "is_shared", "key", "look", "outcome", "recorded", "reservation"),
    )

    def __init__(self, keeper: Keeper, key: ApiKey, outcome: RequestOutcome, headers: Told) -> None:
        """`headers`: of the answer; the key's limits go behind those that are there now."""
        self.key = key
        self.outcome = outcome
        self.look: Callable[[], None] | None = None
        """Brings the outcome of a running stream up to date."""
        self.reservation = Reservation()
        self.recorded = Used()
        self.is_counted = False
        """As a request."""
        self.is_limited = key.has_limit
        self.is_shared = False
        """Redis has counted it as a request: it must not again when it is reserved anew."""
        self._keeper = keeper
        self._headers = headers
        self._own_headers = len(headers)
        self._expected_prompt_tokens = 0

    async def reserve(self, model: str, prompt_tokens: int, output_tokens: Callable[[], int]) -> None:
        """Before any of it runs. `output_tokens`: predicted, of all choices. Raises RateLimited, LargerThanLimit, QuotaSpent."""
        self._expected_prompt_tokens = prompt_tokens
        if self.is_limited:
            self.reservation = await self._keeper.reserve(self.key, model, prompt_tokens, output_tokens(), self.tell, again=self.is_shared)

    def release(self) -> None:
        """What was reserved is free again, as another model will answer: it is reserved anew."""
        self._keeper.release(self)

    def tell(self, told: Told) -> None:
        """Replaces what was told before."""
        self._headers[self._own_headers :] = told

    def used_until_now(self, priced: Callable[[str, int, int, int], int]) -> Used:
        """What was sent: of a stream every token that left, of a whole answer nothing before all of it has. A prompt counts with the first
        token; a backend that tells of it only at the end is believed then, and our own count until then."""
        outcome = self.outcome
        if outcome.model is None or not (outcome.ttft_s is not None if outcome.stream else outcome.status == 200):
            return Used()
        prompt_tokens, cached_tokens = outcome.prompt_tokens or self._expected_prompt_tokens, outcome.cached_tokens
        nano_usd = priced(outcome.model, prompt_tokens, cached_tokens, outcome.completion_tokens)
        return Used(prompt_tokens, cached_tokens, outcome.completion_tokens, nano_usd)

    def close(self) -> None:
        """Of a request that is over, however it ended."""
        self.look = None
        self._keeper.settle(self)
