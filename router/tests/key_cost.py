"""What a key costs a request: the ledger's part of one short request, without limits and with all of them. Not a test: run by hand.

`python tests/key_cost.py` (in `router/`): microseconds of this process's CPU time, the best of five rounds, usage stored in SQLite.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from pagoda_router.database.sqlite import SqliteDatabase
from pagoda_router.http.surface import RequestOutcome
from pagoda_router.keys.key import ApiKey
from pagoda_router.usage.amounts import TokenPrices
from pagoda_router.usage.ledger import UsageLedger
from pagoda_router.usage.store import UsageStore

ROUNDS, REQUESTS = 5, 20_000
PRICES = TokenPrices(input_pico_usd=1, cached_pico_usd=1, output_pico_usd=1)
KEYS = (
    ApiKey(id="free", prefix="p", name="without limits", tenant="t"),
    ApiKey(
        id="all",
        prefix="p",
        name="requests and tokens a minute, tokens and dollars a month",
        tenant="t",
        requests_per_minute=10**9,
        tokens_per_minute=10**9,
        monthly_tokens=10**15,
        monthly_nano_usd=10**15,
    ),
)


async def cost_us(ledger: UsageLedger, key: ApiKey) -> float:
    began_s = time.process_time()
    for _ in range(REQUESTS):
        outcome = RequestOutcome(endpoint="chat", request_id="r", model="m", stream=True)
        account = ledger.open(key, outcome, [])
        await account.reserve("m", 30, lambda: 20)
        outcome.ttft_s, outcome.status, outcome.prompt_tokens, outcome.completion_tokens = 0.1, 200, 30, 16
        account.close()
    return 1e6 * (time.process_time() - began_s) / REQUESTS


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = UsageStore(SqliteDatabase(Path(folder) / "usage.db"), "key-cost")
        ledger = UsageLedger(store, None, lambda model: PRICES, clock=time.monotonic, calendar=time.time)
        for key in KEYS:
            print(f"{key.name}: {min([await cost_us(ledger, key) for _ in range(ROUNDS)]):.1f} µs a request")


if __name__ == "__main__":
    asyncio.run(main())
