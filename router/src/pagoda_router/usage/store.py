"""Usage in the router's database: batches of it in, sums by hour or day out. Blocking calls; the ledger makes them in a thread.

A batch is written in one transaction with its writer's number, so that one that comes twice is counted once. Rows are written in the
order of their keys: two routers that write the same ones wait for each other and never deadlock.
"""

from dataclasses import dataclass
from typing import NamedTuple

from pagoda_router.database.base import Database, Transaction
from pagoda_router.usage.amounts import NOTHING, Amount
from pagoda_router.usage.counters import Batch
from pagoda_router.usage.months import Month, month_of

MOST_ROWS = 10_000
WRITER_KEPT_S = 7 * 86_400
"""Longer than any router goes on trying to write one batch."""

NUMBER = """INSERT INTO usage_writer (id, batch, written_unix_s) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET batch = excluded.batch, written_unix_s = excluded.written_unix_s WHERE usage_writer.batch < excluded.batch"""
ADD_HOUR = """INSERT INTO usage_hour
(hour_unix_s, key_id, model, tenant, requests, prompt_tokens, cached_tokens, completion_tokens, nano_usd)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (hour_unix_s, key_id, model) DO UPDATE SET
    requests = usage_hour.requests + excluded.requests,
    prompt_tokens = usage_hour.prompt_tokens + excluded.prompt_tokens,
    cached_tokens = usage_hour.cached_tokens + excluded.cached_tokens,
    completion_tokens = usage_hour.completion_tokens + excluded.completion_tokens,
    nano_usd = usage_hour.nano_usd + excluded.nano_usd"""
ADD_MONTH = """INSERT INTO usage_month (month, key_id, tokens, nano_usd) VALUES (?, ?, ?, ?)
ON CONFLICT (month, key_id) DO UPDATE SET
    tokens = usage_month.tokens + excluded.tokens, nano_usd = usage_month.nano_usd + excluded.nano_usd"""
TOTALS = "SELECT key_id, tokens, nano_usd FROM usage_month WHERE month = ?"
SUMS = """SELECT {start}, key_id, model, min(tenant), CAST(sum(requests) AS BIGINT), CAST(sum(prompt_tokens) AS BIGINT),
    CAST(sum(cached_tokens) AS BIGINT), CAST(sum(completion_tokens) AS BIGINT), CAST(sum(nano_usd) AS BIGINT)
FROM usage_hour WHERE hour_unix_s >= ? AND hour_unix_s < ? AND (? = '' OR key_id = ?) AND (? = '' OR model = ?)
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT ?"""
STARTS = {"hour": "hour_unix_s", "day": "hour_unix_s - hour_unix_s % 86400", "total": "CAST(0 AS BIGINT)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    from_unix_s: int
    until_unix_s: int
    by: str = "hour"
    """hour, day or total."""
    key_id: str = ""
    """Empty: all."""
    model: str = ""


class UsageSum(NamedTuple):
    start_unix_s: int
    """Of the hour or day; 0 in a total."""
    key_id: str
    model: str
    tenant: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    nano_usd: int


class UsageStore:
    """Its calls raise DatabaseError."""

    def __init__(self, database: Database, writer: str) -> None:
        """`writer`: of this process alone, so that its batches' numbers are."""
        self._database = database
        self._writer = writer

    def write(self, batch: Batch | None, month: Month, now_unix_s: int) -> dict[str, Amount]:
        """Returns what each key has spent in `month`, this batch counted, by all routers."""
        with self._database.transaction(writes=batch is not None) as transaction:
            if batch is not None and transaction.change(NUMBER, (self._writer, batch.number, now_unix_s)) == 1:
                _add(transaction, batch)
                if batch.number == 1:
                    transaction.change("DELETE FROM usage_writer WHERE written_unix_s < ?", (now_unix_s - WRITER_KEPT_S,))
            return {key_id: Amount(tokens, nano_usd) for key_id, tokens, nano_usd in transaction.rows(TOTALS, (month.name,))}

    def sums(self, question: Question) -> list[UsageSum]:
        """At most MOST_ROWS + 1."""
        asked = (
            *(question.from_unix_s, question.until_unix_s, question.key_id, question.key_id),
            *(question.model, question.model, MOST_ROWS + 1),
        )
        with self._database.transaction() as transaction:
            return [UsageSum(*row) for row in transaction.rows(SUMS.format(start=STARTS[question.by]), asked)]


def _add(transaction: Transaction, batch: Batch) -> None:
    places = sorted(batch.counted)
    transaction.change_each(ADD_HOUR, [(*place, batch.counted[place].requests, *batch.counted[place].used) for place in places])
    months: dict[tuple[str, str], Amount] = {}
    for place in places:
        month = (month_of(place.hour_unix_s).name, place.key_id)
        months[month] = months.get(month, NOTHING).plus(batch.counted[place].used.amount)
    transaction.change_each(ADD_MONTH, [(*month, *amount) for month, amount in sorted(months.items())])
