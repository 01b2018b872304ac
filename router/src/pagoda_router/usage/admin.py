"""GET /admin/v1/usage on the public port: who used what, by hour, day or in total, as JSON or CSV. Checks what was asked; the ledger sums.

app.py calls it after it has checked for an admin key.
"""

import csv
import io
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from pagoda_router.errors import BadRequest
from pagoda_router.http.asgi import JSON_TYPE
from pagoda_router.keys.keyring import Keyring
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.usage.months import HOUR_S, hour_of, month_of
from pagoda_router.usage.store import MOST_ROWS, STARTS, Question, UsageSum

USAGE = "/admin/v1/usage"
CSV_TYPE = (b"content-type", b"text/csv; charset=utf-8")
NANO = 1_000_000_000
KNOWN = ("key", "model", "from", "until", "by", "format")
LAST_UNIX_S = 253_402_300_800
"""The year 9999's end."""


class UsageAdmin:
    def __init__(self, ledger: UsageLedger, keyring: Keyring) -> None:
        self._ledger = ledger
        self._keyring = keyring

    async def answer(self, query: bytes) -> tuple[tuple[bytes, bytes], bytes]:
        """Content type and body. Raises BadRequest, UsageUnavailable."""
        given = _given(query)
        wanted = given.get("format", "json")
        if wanted not in ("json", "csv"):
            raise BadRequest(f"format is {wanted[:40]!r}: use json or csv", param="format")
        question = question_of(given, self._ledger.now_unix_s())
        sums = await self._ledger.sums(question)
        if len(sums) > MOST_ROWS:
            raise BadRequest(
                f"that are more than {MOST_ROWS} rows: ask for less time, one key or model, or by=day or by=total", param="from"
            )
        names = {key.id: key.name for key in self._keyring.list()}
        rows = [_row(each, question, names.get(each.key_id, "")) for each in sums]
        return (CSV_TYPE, _csv(rows)) if wanted == "csv" else (JSON_TYPE, _json(rows, question))


def question_of(given: dict[str, str], now_unix_s: float) -> Question:
    """Pure. From the beginning of this month until now unless told. Raises BadRequest."""
    by = given.get("by", "hour")
    if by not in STARTS:
        raise BadRequest(f"by is {by[:40]!r}: use {', '.join(STARTS)}", param="by")
    start = _time(given, "from")
    end = _time(given, "until")
    from_unix_s = month_of(now_unix_s).start_unix_s if start is None else hour_of(start)
    until_unix_s = int(now_unix_s) + HOUR_S if end is None else end
    if from_unix_s >= until_unix_s:
        raise BadRequest("from is not before until: nothing lies between them", param="from")
    return Question(from_unix_s=from_unix_s, until_unix_s=until_unix_s, by=by, key_id=given.get("key", ""), model=given.get("model", ""))


def _given(query: bytes) -> dict[str, str]:
    given = dict(parse_qsl(query.decode("ascii", errors="replace"), keep_blank_values=True))
    for name in given:
        if name not in KNOWN:
            raise BadRequest(f"{USAGE} knows no {name[:40]!r}: use {', '.join(KNOWN)}", param=name[:40])
    return given


def _time(given: dict[str, str], name: str) -> int | None:
    """Unix seconds, or a date or time of ISO 8601; without a zone it is UTC. Counted by whole hours: an hour that began is in it."""
    text = given.get(name)
    if not text:
        return None
    try:
        if re.fullmatch(r"\d{5,12}", text):
            unix_s = int(text)
        else:
            moment = datetime.fromisoformat(text)
            unix_s = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        unix_s = -1
    if not 0 <= unix_s < LAST_UNIX_S:
        raise BadRequest(
            f"{name} is {text[:40]!r}: use a date such as 2026-11-26, a time such as 2026-11-26T10:00Z, or Unix seconds", param=name
        )
    return unix_s


def _row(each: UsageSum, question: Question, key_name: str) -> dict[str, Any]:
    start = question.from_unix_s if question.by == "total" else each.start_unix_s
    return {
        "start": datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "key": each.key_id,
        "name": key_name,
        "tenant": each.tenant,
        "model": each.model,
        "requests": each.requests,
        "prompt_tokens": each.prompt_tokens,
        "cached_tokens": each.cached_tokens,
        "completion_tokens": each.completion_tokens,
        "cost_usd": each.nano_usd / NANO,
    }


SUMMED = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")


def _json(rows: list[dict[str, Any]], question: Question) -> bytes:
    total = {name: sum(row[name] for row in rows) for name in SUMMED} | {
        "cost_usd": sum(round(row["cost_usd"] * NANO) for row in rows) / NANO
    }
    return msgspec.json.encode({"object": "list", "by": question.by, "data": rows, "total": total})


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=("start", "key", "name", "tenant", "model", *SUMMED, "cost_usd"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {**row, "name": _harmless(row["name"]), "tenant": _harmless(row["tenant"]), "cost_usd": f"{row['cost_usd']:.9f}"} for row in rows
    )
    return text.getvalue().encode()


def _harmless(text: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
