"""The console against a running product, in a real browser: each panel for what it is for."""

import os
import re
from collections.abc import Iterator

import httpx
import openai
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from pagoda_bench.chromium import CHROMIUM, chromium, watched_page
from pagoda_bench.local_stack import LocalStack

PARTS = ["receive", "prepare", "queue wait", "route", "worker queue", "prefill", "decode", "stream"]
LONG = "Sort these numbers: " + ", ".join(str(number) for number in range(90, 40, -2))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        (pytest.fail if os.environ.get("PAGODA_REQUIRE_ALL") == "1" else pytest.skip)("needs the package 'chromium'")
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with watched_page(browser) as page:
        yield page


def rows(page: Page, table: str) -> Locator:
    return page.locator(f"#{table} tbody tr")


def asked(client: openai.OpenAI, request_id: str) -> str:
    """The answer's id."""
    return client.completions.create(model="tiny", prompt="1 2 3", max_tokens=8, extra_headers={"X-Request-Id": request_id}).id


def test_a_question_in_the_chat_leads_to_its_trace(page: Page, stack: LocalStack) -> None:
    page.goto(stack.url)
    expect(page.locator("#readiness")).to_have_text("ready")
    page.get_by_label("Message", exact=True).fill("What is 27 + 46?")
    page.get_by_label("Message", exact=True).press("Enter")
    expect(page.locator("#figures")).to_contain_text("first token")
    page.get_by_role("link", name="Trace", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".waterfall th")).to_have_text(PARTS)
    expect(dialog).to_contain_text("only worker")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(page).to_have_url(re.compile(r"#traces$"))


def test_the_comparison_runs_each_row_with_its_toggles(page: Page, stack: LocalStack) -> None:
    page.goto(f"{stack.url}/#compare")
    expect(page.locator("#readiness")).to_have_text("ready")
    page.get_by_label("Prompt", exact=True).fill(LONG)
    page.get_by_label("Output tokens").fill("12")
    page.get_by_label("Rounds").fill("2")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#compare-progress")).to_have_text("median of 2", timeout=60_000)
    on, off = (rows(page, "compare-table").nth(at).locator("td").all_inner_texts() for at in range(2))
    for cells in (on, off):
        assert all(re.fullmatch(r"[\d.]+ m?s", cells[at]) for at in (6, 7, 8, 10)), cells
        assert re.fullmatch(r"[\d.]+( k)?", cells[9])
        assert "steps, batch 1" in cells[13], "what the worker says of it"
    assert re.fullmatch(r"[1-9]\d* of \d+", on[11]), "the second round finds what the first one left"
    assert re.fullmatch(r"0 of \d+", off[11])
    assert (on[12], off[12]) == ("12 tokens", "equal")


def test_the_fleet_shows_the_worker_as_the_router_sees_it(page: Page, stack: LocalStack) -> None:
    page.goto(f"{stack.url}/#fleet")
    expect(page.locator("#fleet-ready")).to_have_text("1 of 1")
    (cells,) = [row.locator("td").all_inner_texts() for row in rows(page, "fleet-table").all()]
    assert cells[:4] == ["tiny-default-0", "tiny", "pagoda", "ready"]
    assert re.fullmatch(r"\d+ % of [\d.]+( k)?", cells[4].strip())
    page.get_by_label("Show only").fill("nobody")
    expect(page.get_by_text("No worker.")).to_be_visible()


def test_the_queue_shows_promises_classes_and_lanes(page: Page, stack: LocalStack, client: openai.OpenAI) -> None:
    asked(client, "queue-1")
    page.goto(f"{stack.url}/#queue")
    card = page.get_by_role("article").filter(has=page.get_by_role("heading", name="tiny"))
    expect(card.locator(".credits")).to_contain_text(re.compile(r"of [\d.]+( k)? reserved"))
    expect(card.locator("tbody tr td:first-child")).to_have_text(["latency", "throughput"])
    expect(card.locator(".lane li")).to_have_text([re.compile("every length.*all workers")])


def test_a_decision_shows_its_candidates_and_leads_to_the_trace(page: Page, stack: LocalStack, client: openai.OpenAI) -> None:
    answer_id = asked(client, "decision-1")
    page.goto(f"{stack.url}/#decisions")
    row = rows(page, "decisions-table").filter(has_text=answer_id)
    expect(row).to_contain_text("only worker")
    page.get_by_label("Replay by").select_option("round-robin")
    expect(page.locator("#regret")).to_contain_text("By round-robin")
    row.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Policy predicted: only worker, among 1; runner-up none.")
    expect(rows(page, "candidates-table")).to_have_count(1)
    dialog.get_by_role("link", name="Its trace").click()
    expect(page.locator("#trace-title")).to_have_text("decision-1")


def test_traces_are_filtered_by_status(page: Page, stack: LocalStack, client: openai.OpenAI) -> None:
    asked(client, "trace-1")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="1", max_tokens=-1, extra_headers={"X-Request-Id": "trace-2"})
    page.goto(f"{stack.url}/#traces")
    expect(rows(page, "traces-table").filter(has_text="trace-1")).to_have_count(1)
    page.get_by_label("Status").fill("400")
    page.get_by_label("Status").press("Enter")
    expect(rows(page, "traces-table").filter(has_text="trace-1")).to_have_count(0)


def test_a_key_is_made_shown_once_and_revoked(page: Page, stack: LocalStack) -> None:
    page.goto(f"{stack.url}/#keys")
    page.get_by_text("New key", exact=True).click()
    page.get_by_label("Name", exact=True).and_(page.locator("#new-key input")).fill("browser")
    page.get_by_label("Tenant").fill("blue")
    page.get_by_label("Days until it expires").fill("2")
    page.get_by_role("button", name="Create").click()
    expect(page.locator("#secret")).to_have_text(re.compile("pgd-."))
    secret = page.locator("#secret").inner_text()
    row = rows(page, "keys-table").filter(has_text="browser")
    expect(row).to_contain_text(secret[:12])
    expect(row).to_contain_text("until 20")

    def status() -> int:
        return httpx.get(f"{stack.url}/v1/models", headers={"authorization": f"Bearer {secret}"}, trust_env=False).status_code

    assert status() == 200
    page.get_by_role("button", name="Done").click()
    assert secret not in page.content()
    row.get_by_role("button", name="Revoke browser").click()
    row.get_by_role("button", name="Revoke browser").click()
    expect(row).to_contain_text("revoked")
    assert status() == 401


def test_usage_shows_what_was_asked_by_key_and_model(page: Page, stack: LocalStack, client: openai.OpenAI) -> None:
    asked(client, "usage-1")
    page.goto(f"{stack.url}/#usage")
    row = rows(page, "usage-table").filter(has_text="anyone").first
    expect(row).to_contain_text("tiny")
    assert int(row.locator("td").nth(4).inner_text()) >= 1
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    head, first, *_ = saved.value.path().read_text().splitlines()
    assert head.startswith("start,key,name,tenant,model,requests")
    assert "tiny" in first
