"""Usage and budgets as clients and administrators meet them: what is billed, what is refused, what is told."""

import asyncio
import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scripted import Caller, Script, ScriptedCatalog, ScriptedDispatcher, chat

from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.errors import BadRequest, NoWorker
from pagoda_router.generation import EndReason
from pagoda_router.http.app import create_app
from pagoda_router.http.asgi import ASGIApp
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.keyring import Keyring
from pagoda_router.keys.store import KeyStore
from pagoda_router.usage.admin import question_of
from pagoda_router.usage.amounts import TokenPrices, token_prices
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.usage.store import UsageStore

NOW_S = 1_795_000_000
PRICES = TokenPrices(input_pico_usd=1_000_000, cached_pico_usd=500_000, output_pico_usd=2_000_000)
"""Of a million tokens: 1, 0.5 and 2 US dollars."""


@dataclass
class Product:
    app: ASGIApp
    ledger: UsageLedger

    async def ask(self, method: str, path: str, body: object = b"", secret: str = "root", query: str = "") -> Caller:
        caller = Caller(self.with_query(query))
        return await caller(method, path, body, headers={"authorization": f"Bearer {secret}"})

    def with_query(self, query: str) -> ASGIApp:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "query_string": query.encode()}, receive, send)

        return app

    async def key(self, **limits: object) -> tuple[str, str]:
        made = (await self.ask("POST", "/admin/v1/keys", {"name": "=cmd", "tenant": "blue", **limits})).json
        return made["id"], made["key"]

    async def usage(self, query: str = "by=total") -> list[dict[str, Any]]:
        answer = await self.ask("GET", "/admin/v1/usage", query=query)
        assert answer.status == 200, answer.body
        data: list[dict[str, Any]] = answer.json["data"]
        return data


@pytest.fixture
def product(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, tmp_path: Path) -> Product:
    dispatcher.script = Script(batches=[[72, 73], [74]])
    database = SqliteDatabase(tmp_path / "db")
    prices: dict[str, TokenPrices] = {"tiny-object": PRICES}
    ledger = UsageLedger(UsageStore(database, "router"), None, prices.get, clock=time.monotonic, calendar=lambda: NOW_S)
    keyring = Keyring("root", KeyStore(database), calendar=lambda: NOW_S)
    app = create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), keyring=keyring, ledger=ledger)
    return Product(app, ledger)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_counted_with_its_cost_for_key_model_and_hour(
    product: Product, dispatcher: ScriptedDispatcher, stream: bool
) -> None:
    dispatcher.script = Script(batches=[[72, 73], [74]], cached_tokens=4)
    key_id, secret = await product.key()
    for _ in range(2):
        assert (await product.ask("POST", "/v1/chat/completions", chat(stream=stream), secret)).status == 200
    prompt = len(dispatcher.generations[0].prompt_ids)
    cost_usd = ((prompt - 4) + 4 * 0.5 + 3 * 2) / 1e6
    (row,) = await product.usage("by=hour")
    assert row == {
        "start": "2026-11-18T11:00:00Z",
        "key": key_id,
        "name": "=cmd",
        "tenant": "blue",
        "model": "tiny-object",
        "requests": 2,
        "prompt_tokens": 2 * prompt,
        "cached_tokens": 8,
        "completion_tokens": 6,
        "cost_usd": pytest.approx(2 * cost_usd),
    }


async def test_a_stream_whose_client_left_is_billed_for_what_was_sent(product: Product, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(batches=[[72, 73], [74]], pause_before={1: asyncio.Event()})
    key_id, secret = await product.key(tokens_per_minute=1000, monthly_tokens=1000)
    caller = Caller(product.app)
    asking = asyncio.create_task(
        caller("POST", "/v1/chat/completions", chat(stream=True, max_tokens=50), headers={"authorization": f"Bearer {secret}"})
    )
    async with asyncio.timeout(10):
        while len(caller.sent) < 2:
            caller.got.clear()
            await caller.got.wait()
    (running,) = await product.usage()
    prompt = len(dispatcher.generations[0].prompt_ids)
    assert (running["prompt_tokens"], running["completion_tokens"], running["requests"]) == (prompt, 2, 1), "it is counted while it runs"
    assert product.ledger._budgets.held(key_id).tokens == 48, "what it may still take is held"
    caller.left.set()
    await asking
    (left,) = await product.usage()
    assert left == running
    assert product.ledger._budgets.is_idle
    assert int(product.ledger._limits._tokens[key_id].left) == 1000 - prompt - 2


NOTHING_SENT = {
    "no worker": Script(refusal=NoWorker("none")),
    "refused": Script(refusal=BadRequest("no")),
    "failed at once": Script(batches=[], reason=EndReason.ENGINE_ERROR, detail="gone"),
}


@pytest.mark.parametrize("script", NOTHING_SENT.values(), ids=NOTHING_SENT.keys())
@pytest.mark.parametrize("stream", [True, False])
async def test_what_failed_before_anything_was_sent_costs_nothing(
    product: Product, dispatcher: ScriptedDispatcher, script: Script, stream: bool
) -> None:
    dispatcher.script = script
    key_id, secret = await product.key(tokens_per_minute=600, monthly_tokens=600, monthly_usd=1)
    assert (await product.ask("POST", "/v1/chat/completions", chat(stream=stream, max_tokens=500), secret)).status >= 400
    assert await product.usage() == []
    assert product.ledger._budgets.is_idle
    assert int(product.ledger._limits._tokens[key_id].left) == 600


async def test_an_answer_in_one_piece_that_nobody_took_costs_nothing(product: Product, dispatcher: ScriptedDispatcher) -> None:
    dispatcher.script = Script(batches=[[72, 73], [74]], pause_before={1: asyncio.Event()})
    _, secret = await product.key()
    caller = Caller(product.app)
    asking = asyncio.create_task(caller("POST", "/v1/chat/completions", chat(), headers={"authorization": f"Bearer {secret}"}))
    async with asyncio.timeout(10):
        await dispatcher.entered.wait()
    caller.left.set()
    await asking
    assert await product.usage() == []


async def test_embeddings_are_counted_by_their_prompt(product: Product, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    catalog.assets = type(catalog.assets)(**{name: getattr(catalog.assets, name) for name in catalog.assets.__slots__} | {"features": None})
    dispatcher.script = Script(batches=[], embedding=(1.0, 0.0))
    _, secret = await product.key(tokens_per_minute=1000)
    assert (await product.ask("POST", "/v1/embeddings", {"model": "tiny", "input": ["hi", "ho"]}, secret)).status == 200
    (row,) = await product.usage()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (4, 0)


BUDGETS: list[tuple[dict[str, object], str]] = [
    ({"monthly_tokens": 60}, "tokens of 2026-11 left"),
    ({"monthly_usd": 0.00008}, "0.00008 USD of 2026-11 left"),
]


@pytest.mark.parametrize(("budget", "words"), BUDGETS, ids=str)
async def test_a_budget_refuses_what_it_cannot_cover_and_says_what_helps(product: Product, budget: dict[str, object], words: str) -> None:
    key_id, secret = await product.key(**budget)
    assert (await product.ask("POST", "/v1/chat/completions", chat(max_tokens=20), secret)).status == 200
    refused = await product.ask("POST", "/v1/chat/completions", chat(max_tokens=55), secret)
    assert (refused.status, refused.error["code"], refused.error["type"]) == (429, "insufficient_quota", "insufficient_quota")
    assert refused.headers["x-should-retry"] == "false"
    assert words in refused.error["message"]
    assert "a new month begins on 2026-12-01 (UTC)" in refused.error["message"]
    raised = await product.ask("PATCH", f"/admin/v1/keys/{key_id}", dict.fromkeys(budget, 1000))
    assert raised.status == 200
    assert (await product.ask("POST", "/v1/chat/completions", chat(max_tokens=55), secret)).status == 200


async def test_a_budget_survives_its_router(product: Product, tmp_path: Path) -> None:
    _, secret = await product.key(monthly_tokens=30)
    assert (await product.ask("POST", "/v1/chat/completions", chat(max_tokens=5), secret)).status == 200
    await product.ledger.flush()
    again = UsageLedger(
        UsageStore(SqliteDatabase(tmp_path / "db"), "next"), None, lambda model: None, clock=time.monotonic, calendar=lambda: NOW_S
    )
    await again.flush()
    (key_id,) = {row["key"] for row in await product.usage()}
    assert again._budgets.spent(key_id) == product.ledger._budgets.spent(key_id)
    assert again._budgets.spent(key_id).tokens > 0


async def test_usage_as_csv_opens_in_a_spreadsheet_and_runs_nothing_there(product: Product) -> None:
    key_id, secret = await product.key()
    await product.ask("POST", "/v1/chat/completions", chat(), secret)
    answer = await product.ask("GET", "/admin/v1/usage", query=f"format=csv&key={key_id}&by=day")
    assert answer.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(answer.body.decode()))
    assert (row["start"], row["key"], row["name"], row["model"]) == ("2026-11-18T00:00:00Z", key_id, "'=cmd", "tiny-object")
    assert await product.usage("key=key-0") == []
    assert await product.usage("model=other") == []


WRONG = [
    ("by=week", "by"),
    ("format=xml", "format"),
    ("from=soon", "from"),
    ("from=2026-12-01", "from"),
    ("until=-1", "until"),
    ("who=me", "who"),
]


@pytest.mark.parametrize(("query", "named"), WRONG)
async def test_a_wrong_question_names_what_is_wrong(product: Product, query: str, named: str) -> None:
    refused = await product.ask("GET", "/admin/v1/usage", query=query)
    assert (refused.status, refused.error["param"]) == (400, named)


async def test_usage_is_for_administrators_and_says_where_it_is_not_kept(product: Product, call: Caller) -> None:
    _, secret = await product.key()
    assert (await product.ask("GET", "/admin/v1/usage", secret=secret)).error["code"] == "forbidden"
    assert (await product.ask("POST", "/admin/v1/usage")).status == 405
    assert (await call("GET", "/admin/v1/usage", headers={"host": "localhost"})).error["code"] == "usage_unavailable"


TIMES = [
    ("1795000123", 1_794_999_600),
    ("2026-11-18", 1_794_960_000),
    ("2026-11-18T10:30Z", 1_794_996_000),
    ("2026-11-18T10:30", 1_794_996_000),
]


@pytest.mark.parametrize(("text", "hour"), TIMES)
def test_times_are_of_utc_and_count_the_hour_that_they_lie_in(text: str, hour: int) -> None:
    assert question_of({"from": text}, NOW_S).from_unix_s == hour


@pytest.mark.parametrize(
    ("usd", "nano"),
    [((1.0, None, 2.0), 10_000 + 6_000), ((None, 0.5, None), 2_000), ((1.0, 0.5, None), 6_000 + 2_000), ((0.0004, None, 0), 4)],
)
def test_a_request_costs_its_parts_rounded_once(usd: tuple[float | None, float | None, float | None], nano: int) -> None:
    prices = token_prices(*usd)
    assert prices is not None
    assert prices.nano_usd(10, 4, 3) == nano


async def test_a_key_learns_only_of_its_models_tokenizers(product: Product) -> None:
    secret = (await product.ask("POST", "/admin/v1/keys", {"name": "one", "models": ["tiny"]})).json["key"]
    assert (await product.ask("GET", "/tokenizer_info", secret=secret)).json["model"] == "tiny"
    refused = await product.ask("GET", "/tokenizer_info", secret=secret, query="model=org/asleep")
    assert (refused.status, refused.error["code"]) == (403, "model_not_allowed")
