"""docs/metrics.md against what a router process really says."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from scripted_worker import ScriptedWorker
from test_main import running, until_ready, word_tokenizer, write_fleet

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented(chapter: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Name → type and labels, of the table under one heading."""
    text = DOCUMENT.read_text().partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("`"): (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}


def scraped(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Without what Python and the process say of themselves."""
    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("pagoda_router_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = (family.type, frozenset(label for sample in family.samples for label in sample.labels if label != "le"))
    return found


async def test_the_routers_table_lists_exactly_what_a_scrape_has(tmp_path):
    async with ScriptedWorker() as worker:
        worker.use_tokenizer(word_tokenizer())
        write_fleet(tmp_path, worker)
        promise(tmp_path, slo={"ttft": "500ms", "tpot": "50ms"}, cost={"workerHourUsd": 0.5})
        async with running(tmp_path, PAGODA_OTLP_ENDPOINT="http://127.0.0.1:9") as router, httpx.AsyncClient() as client:
            await until_ready(client, router)
            asking = asyncio.create_task(client.post(f"{router.url}/v1/completions", json={"model": "tiny", "prompt": "a b"}))
            submit = await worker.next_submit()
            worker.tokens(submit.request_id, [2], started=True)
            worker.finish(submit.request_id)
            assert (await asking).status_code == 200
            public, internal = [(await client.get(f"{url}/metrics")).text for url in (router.url, router.internal_url)]
            assert scraped(public) == documented("Router")
            assert scraped(internal) == scraped(public)
            assert 'pagoda_router_model_cost_usd_per_hour{model="tiny"} 0.5' in public
            assert 'pagoda_router_slo_requests_total{model="tiny",sli="availability",verdict="good"} 1.0' in public
            listed = (await client.get(f"{router.internal_url}/admin/traces", headers={"authorization": "Bearer inner"})).json()
            assert [trace["status"] for trace in listed["traces"]] == [200]
            assert (await client.get(f"{router.internal_url}/admin/traces")).status_code == 401
            assert (await client.get(f"{router.url}/admin/traces")).status_code == 404, "not on the public port"


def promise(folder: Path, **spec: Any) -> None:
    document = json.loads((folder / "fleet.json").read_text())
    document["models"][0]["spec"].update(spec)
    fresh = folder / "fleet.new"
    fresh.write_text(json.dumps(document))
    fresh.replace(folder / "fleet.json")
