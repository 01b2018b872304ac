"""Budgets and usage under arrivals, tokens, ends, cancels, failures, databases that fail and crashes, in any order, on a real database."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, precondition, rule

from pagoda_router.database.base import Database
from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.errors import DatabaseError, LargerThanLimit, QuotaSpent, RateLimited
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ApiKey
from pagoda_router.usage.account import Account
from pagoda_router.usage.amounts import Amount, TokenPrices
from pagoda_router.usage.counters import Batch
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.usage.months import Month
from pagoda_router.usage.store import Question, UsageStore

PRICES = TokenPrices(input_pico_usd=3_000, cached_pico_usd=1_000, output_pico_usd=7_000)
KEYS = [
    ApiKey(id="tokens", prefix="pgd-1", name="n", tenant="t", monthly_tokens=400),
    ApiKey(id="dollars", prefix="pgd-2", name="n", tenant="t", monthly_nano_usd=2_000, tokens_per_minute=300),
    ApiKey(id="free", prefix="pgd-3", name="n", tenant="t"),
]
START_S = 1_795_000_000  # 2026-11-18
MONTH_S = 31 * 86_400


class FailingStore(UsageStore):
    """The real one, whose answer is lost when a test says so: before the commit, or after it."""

    fails = ""

    def write(self, batch: Batch | None, month: Month, now_unix_s: int) -> dict[str, Amount]:
        failing, self.fails = self.fails, ""
        if failing == "before":
            raise DatabaseError("the test says so")
        totals = super().write(batch, month, now_unix_s)
        if failing == "after":
            raise DatabaseError("the test says so")
        return totals


@dataclass(eq=False)
class Running:
    account: Account
    outcome: RequestOutcome
    prompt_tokens: int
    held: Amount


class UsageMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pgd-"))
        self.runner = asyncio.Runner()
        self.database: Database = SqliteDatabase(self.folder / "db")
        self.now_s = float(START_S)
        self.writers = 0
        self.spent = {key.id: Amount() for key in KEYS}
        """Of all months, by what was sent."""
        self.month_began_with = dict(self.spent)
        self.running: list[Running] = []
        self.begin()

    def begin(self) -> None:
        self.writers += 1
        self.store = FailingStore(self.database, f"writer-{self.writers}")
        self.ledger = UsageLedger(self.store, None, lambda model: PRICES, clock=lambda: self.now_s, calendar=lambda: self.now_s)
        self.runner.run(self.ledger.flush())

    # ------------------------------------------------------------ requests

    @rule(target=requests, key=st.sampled_from(KEYS), prompt=st.integers(1, 120), predicted=st.integers(1, 120), stream=st.booleans())
    def arrive(self, key: ApiKey, prompt: int, predicted: int, stream: bool) -> object:
        outcome = RequestOutcome(endpoint="chat", request_id="r", model="tiny", served_name="tiny", stream=stream)
        account = self.ledger.open(key, outcome, [])
        cost = Amount(prompt + predicted, PRICES.nano_usd(prompt, 0, predicted))
        fits = self.fits(key, cost)
        try:
            self.runner.run(account.reserve("tiny", prompt, lambda: predicted))
        except QuotaSpent:
            assert not fits
        except (RateLimited, LargerThanLimit):
            assert key.tokens_per_minute is not None
        else:
            assert fits
            request = Running(account, outcome, prompt, cost if key.has_budget else Amount())
            self.running.append(request)
            return request
        account.close()
        return multiple()

    def fits(self, key: ApiKey, cost: Amount) -> bool:
        spent = self.spent[key.id].minus(self.month_began_with[key.id])
        for request in self.running:
            if request.account.key is key:
                spent = spent.plus(request.account.reservation.held)
        in_tokens = key.monthly_tokens is None or spent.tokens + cost.tokens <= key.monthly_tokens
        return in_tokens and (key.monthly_nano_usd is None or spent.nano_usd + cost.nano_usd <= key.monthly_nano_usd)

    @rule(request=requests, tokens=st.integers(1, 100), cached=st.integers(0, 3))
    def send(self, request: Running, tokens: int, cached: int) -> None:
        if request in self.running and request.outcome.stream:
            outcome = request.outcome
            outcome.status, outcome.ttft_s, outcome.prompt_tokens = 200, 0.1, request.prompt_tokens
            outcome.cached_tokens = min(cached, request.prompt_tokens)
            outcome.completion_tokens += tokens

    @rule(request=consumes(requests), end=st.sampled_from(["whole", "gone", "failed"]), tokens=st.integers(0, 100))
    def end(self, request: Running, end: str, tokens: int) -> None:
        """A stream was sent as far as it came, whatever ends it; of an answer in one piece all was sent, or nothing."""
        if request not in self.running:
            return  # gone with its router
        outcome = request.outcome
        if end == "whole":
            outcome.ttft_s = 0.1 if outcome.stream or tokens else None
            outcome.prompt_tokens, outcome.completion_tokens = request.prompt_tokens, outcome.completion_tokens + tokens
        outcome.status = {"whole": 200, "gone": 499, "failed": 502}[end]
        self.running.remove(request)
        before = request.account.recorded
        request.account.close()
        self.count(request, before.amount)
        was_sent = outcome.ttft_s is not None if outcome.stream else end == "whole"
        assert (request.account.recorded.amount != Amount()) == was_sent

    def count(self, request: Running, before: Amount) -> None:
        key_id = request.account.key.id
        self.spent[key_id] = self.spent[key_id].plus(request.account.recorded.amount.minus(before))

    # ------------------------------------------------------------ the world

    @rule(fails=st.sampled_from(["", "", "before", "after"]))
    def flush(self, fails: str) -> None:
        befores = [(request, request.account.recorded.amount) for request in self.running]
        self.store.fails = fails
        try:
            self.runner.run(self.ledger.flush())
        except DatabaseError:
            assert fails
        for request, before in befores:
            self.count(request, before)

    @rule(seconds=st.sampled_from([1, 20, 3600, MONTH_S]))
    def wait(self, seconds: int) -> None:
        if seconds == MONTH_S:  # what streams sent before the month's end was in it
            self.flush("")
            self.month_began_with = dict(self.spent)
        self.now_s += seconds

    @precondition(lambda self: self.running)
    @rule()
    def crash(self) -> None:
        """kill -9: what was not stored is lost, and so is every hold; what was stored is there once."""
        sums = self.sums()
        for key_id, amount in sums.items():
            assert amount.tokens <= self.spent[key_id].tokens
        self.spent = sums
        self.month_began_with = {key_id: amount.minus(self.of_month(key_id)) for key_id, amount in sums.items()}
        self.running = []
        self.begin()
        assert self.ledger._budgets.is_idle

    # ------------------------------------------------------------ what must hold

    @invariant()
    def holds_are_those_of_running_requests(self) -> None:
        for key in KEYS:
            held = Amount()
            for request in self.running:
                if request.account.key is key:
                    held = held.plus(request.account.reservation.held)
            assert self.ledger._budgets.held(key.id) == held

    def sums(self) -> dict[str, Amount]:
        question = Question(from_unix_s=0, until_unix_s=2**40, by="total")
        found = {key.id: Amount() for key in KEYS}
        for each in UsageStore(self.database, "reader").sums(question):
            found[each.key_id] = Amount(each.prompt_tokens + each.completion_tokens, each.nano_usd)
        return found

    def of_month(self, key_id: str) -> Amount:
        return UsageStore(self.database, "reader").write(None, self.ledger_month(), 0).get(key_id, Amount())

    def ledger_month(self) -> Month:
        self.ledger._budgets.turn(self.now_s)
        return self.ledger._budgets.month

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            for request in list(self.running):
                self.end(request, "gone", 0)
            self.flush("")
            assert self.ledger._budgets.is_idle
            assert not self.ledger._open
            assert self.sums() == self.spent
            for key in KEYS:
                assert self.of_month(key.id) == self.spent[key.id].minus(self.month_began_with[key.id])
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)


TestUsageMachine = UsageMachine.TestCase
TestUsageMachine.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
