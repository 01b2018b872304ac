"""The console's panels in a real browser where a real stack is too small or too healthy: many workers, odd names, refusals, keys.

Each against what it is for on a running product is bench/tests/stack/test_console.py.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect
from scripted import Script, ScriptedCatalog, ScriptedDispatcher, served

from pagoda_bench.chromium import watched_page
from pagoda_router.catalog import TextAssets
from pagoda_router.errors import BadRequest
from pagoda_router.generation import Generation
from pagoda_router.http.app import create_app
from pagoda_router.http.asgi import JSON_TYPE, ASGIApp, Receive, Scope, Send, answer
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.key import ApiKey, digest_of
from pagoda_router.keys.keyring import Keyring

MANY = 1000
Documents = dict[str, dict[str, Any]]


def worker(number: int, **fields: Any) -> dict[str, Any]:
    usual = {
        "name": f"tiny-default-{number}", "model": "tiny", "variant": "default", "address": f"10.0.{number // 250}.{number % 250}:9000",
        "backend": "pagoda", "routable": True, "reason": "", "draining": False, "shunned": None, "inFlight": 1, "running": number % 7,
        "waiting": 0, "maxRunning": 8, "kvCapacityTokens": 4096, "kvAvailableTokens": 1024,
        "kvReservedTokens": 3072, "kvUsedTokens": 512,
        "prefillTokensPerS": 9000.0, "decodeTokensPerS": 90.0,
    }  # fmt: skip
    return usual | fields


def trace(number: int) -> dict[str, Any]:
    return {
        "request_id": f"req-{number}", "trace_id": "0" * 32, "model": "tiny", "status": 200, "received_at": "2026-11-26T05:00:00.000Z",
        "total_ms": 10.0, "phases_ms": {"receive": 1.0, "prefill": 4.0, "decode": 5.0},
        "tokens": {"prompt": 12, "cached": 0, "output": 3}, "worker": "tiny-default-0@10.0.0.1:9000", "attempts": 1,
    }  # fmt: skip


def used(hour: int, name: str) -> dict[str, Any]:
    return {
        "start": f"2026-11-26T0{hour}:00:00Z", "key": "key-1", "name": name, "tenant": "blue", "model": "tiny", "requests": 1,
        "prompt_tokens": 1000, "cached_tokens": 16, "completion_tokens": 200, "cost_usd": 0.00125,
    }  # fmt: skip


@pytest.fixture
def documents() -> Documents:
    """By path below /admin/v1/: what the server tells. A test may change it while the page looks."""
    return {
        "fleet": {"models": {}, "workers": [worker(number) for number in range(MANY)]},
        "queue": {"models": {}},
        "lanes": {"models": {}},
        "traces": {"traces": [trace(number) for number in range(MANY)]},
        "usage": {"object": "list", "by": "hour", "data": [used(1, "ci"), used(3, "")], "total": used(0, "") | {"requests": 2}},
    }


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def url(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, documents: Documents, asked: list[str]) -> Iterator[str]:
    def telling(name: str) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            asked.append(name)
            await answer(send, 200, [JSON_TYPE], msgspec.json.encode(documents[name]))

        return app

    routes = {f"/admin/v1/{name}": telling(name) for name in documents}
    with served(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), guarded_routes=routes)) as url:
        yield url


def rows(page: Page, table: str) -> Any:
    return page.locator(f"#{table} tbody tr")


def test_a_thousand_workers_are_shown_and_a_refresh_writes_into_the_same_rows(page: Page, url: str, documents: Documents) -> None:
    page.goto(f"{url}#fleet")
    expect(rows(page, "fleet-table")).to_have_count(MANY)
    expect(page.locator("#fleet-ready")).to_have_text("1000 of 1000")
    page.evaluate("window.firstRow = document.querySelector('#fleet-table tbody tr')")
    documents["fleet"]["workers"][0] |= {"running": 8, "shunned": "slow"}
    del documents["fleet"]["workers"][1]
    expect(rows(page, "fleet-table")).to_have_count(MANY - 1)
    expect(rows(page, "fleet-table").first).to_contain_text("shunned: slow")
    expect(rows(page, "fleet-table").first).to_contain_text("8 of 8")
    assert page.evaluate("window.firstRow === document.querySelector('#fleet-table tbody tr')")
    page.get_by_label("in trouble").check()
    expect(rows(page, "fleet-table")).to_have_count(1)


def test_a_thousand_traces_are_shown_with_their_strips(page: Page, url: str) -> None:
    page.goto(f"{url}#traces")
    expect(rows(page, "traces-table")).to_have_count(MANY)
    strip = page.get_by_role("img", name="receive 1.0 ms, prefill 4.0 ms, decode 5.0 ms").first
    assert "linear-gradient" in strip.evaluate("element => element.style.backgroundImage")


def test_the_share_of_other_routers_is_no_use_of_a_cache(page: Page, url: str, documents: Documents) -> None:
    """Each of two routers may reserve half; the worker says that 1024 of 4096 are in use."""
    documents["fleet"]["workers"] = [worker(0, kvAvailableTokens=2048, kvReservedTokens=0, kvUsedTokens=1024)]
    tokens = {"capacityTokens": 4096, "availableTokens": 1548, "reservedTokens": 500}
    waits = [
        {"class": name, "requests": 0, "tokens": 0, "oldestS": 0.0, "drainTokensPerS": 12345.6, "waitS": 0.0}
        for name in ("latency", "throughput")
    ]
    line = {"credits": tokens, "classes": waits, "tenants": [], "tenantCount": 0, "mostTokens": 9, "mostRequests": 9, "waves": False}
    documents["queue"]["models"] = {"one": line, "two": line}
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"{url}#fleet")
    expect(page.locator("#fleet-kv")).to_have_text("25 %")
    page.goto(f"{url}#queue")
    expect(page.locator("#queue .card").first).to_contain_text("500 of 2048 reserved (24 %)")
    widths = page.locator("#queue .scroll:visible").evaluate_all("places => places.map((each) => [each.scrollWidth, each.clientWidth])")
    assert widths
    assert all(inner <= outer for inner, outer in widths), "no column is cut off"


def test_a_model_whose_workers_are_all_gone_is_named(page: Page, url: str, documents: Documents) -> None:
    documents["fleet"] |= {"models": {"dead": {"routable": {}, "waiting": 2}, "tiny": {"routable": {"a": 1}, "waiting": 0}}}
    page.goto(f"{url}#fleet")
    expect(page.locator("#fleet-missing")).to_have_text("dead has no worker that takes requests; 2 wait")
    documents["fleet"]["models"]["dead"]["routable"] = {"a": 1}
    expect(page.locator("#fleet-missing")).to_be_hidden()


def test_what_a_worker_calls_itself_is_text(page: Page, url: str, documents: Documents) -> None:
    name = "<img src=x onerror=\"document.title='taken'\">"
    documents["fleet"]["workers"] = [worker(0, name=name, variant=name, routable=False, reason=name)]
    page.goto(f"{url}#fleet")
    expect(rows(page, "fleet-table").first).to_contain_text(name)
    assert page.locator("#fleet-table img").count() == 0
    assert page.title() == "Pagoda Fleet"


def test_nothing_is_asked_while_the_tab_is_hidden(page: Page, url: str, asked: list[str]) -> None:
    page.clock.install()
    page.goto(f"{url}#fleet")
    expect(rows(page, "fleet-table")).to_have_count(MANY)
    with page.expect_response("**/admin/v1/fleet"):
        page.clock.run_for(60_000)
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    before = len(asked)
    page.clock.run_for(60_000)
    assert len(asked) == before
    page.evaluate("Object.defineProperty(document, 'hidden', {value: false})")
    with page.expect_response("**/admin/v1/fleet"):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_a_panel_that_is_left_asks_no_more(page: Page, url: str, asked: list[str]) -> None:
    page.clock.install()
    page.goto(f"{url}#fleet")
    expect(rows(page, "fleet-table")).to_have_count(MANY)
    page.get_by_role("link", name="Traces").click()
    expect(rows(page, "traces-table")).to_have_count(MANY)
    before = asked.count("fleet")
    with page.expect_response("**/admin/v1/traces?*"):
        page.clock.run_for(60_000)
    assert asked.count("fleet") == before


def test_usage_is_shown_with_its_sums_hour_by_hour_and_saved_as_csv(page: Page, url: str, asked: list[str]) -> None:
    page.goto(f"{url}#usage")
    expect(rows(page, "usage-table").locator("td:nth-child(-n+2)")).to_have_text(["2026-11-26 03:00", "key-1", "2026-11-26 01:00", "ci"])
    expect(page.locator("#usage-tiles dd")).to_have_text(["2", "1000", "16", "200", "$0.0013"])
    chart = page.get_by_role("img", name="Tokens from 2026-11-26 01:00 to 2026-11-26 03:00, at most 1200")
    expect(chart.locator("rect")).to_have_count(3)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download CSV").click()
    assert saved.value.suggested_filename == "pagoda-usage.csv"
    with page.expect_request("**/admin/v1/usage?*by=day*"):
        page.locator("#usage-by").select_option("day")
        page.get_by_role("button", name="Show").click()


def test_panels_are_reached_by_keyboard_and_by_the_back_button(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("link", name="Fleet").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Workers")).to_be_visible()
    expect(page.get_by_role("link", name="Fleet")).to_have_attribute("aria-current", "page")
    page.go_back()
    expect(page.get_by_label("Message", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_never_scrolls_sideways(page: Page, url: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(url)
    for panel in ("chat", "compare", "fleet", "queue", "decisions", "traces", "keys", "usage"):
        page.evaluate(f"location.hash = '{panel}'")
        expect(page.locator(f"#{panel}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, panel
        sides = page.evaluate(f"[...document.querySelectorAll('#{panel} > *')].map(each => each.getBoundingClientRect().right)")
        assert max(sides) <= width, panel


def test_every_field_and_button_has_a_name(page: Page, url: str) -> None:
    page.goto(url)
    nameless = """[...document.querySelectorAll('input, select, textarea, button')].filter(
        each => !each.labels?.length && !each.ariaLabel && !each.textContent.trim()).map(each => each.outerHTML)"""
    assert page.evaluate(nameless) == []


# ---------------------------------------------------------------- comparing


def compared(page: Page, row: int) -> list[str]:
    return page.locator("#compare-rows tr").nth(row).locator("td").all_inner_texts()


def test_rows_ask_for_their_toggles_and_texts_are_compared_with_the_first(
    page: Page, url: str, dispatcher: ScriptedDispatcher, tokenizer: Any
) -> None:
    usual, other = ([[token] for token in tokenizer.encode(text).ids] for text in ("hello world", "hello fox"))

    def script_of(generation: Generation) -> Script:
        return Script(batches=other if generation.cache_salt else usual, cached_tokens=0 if generation.cache_salt else 3)

    dispatcher.script_of = script_of
    page.goto(f"{url}#compare")
    page.get_by_label("Rounds").fill("2")
    page.get_by_role("button", name="Add a row").click()
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#compare-progress")).to_have_text("median of 2")
    assert len(dispatcher.generations) == 6
    assert [bool(each.cache_salt) for each in dispatcher.generations] == [False, True, False] * 2
    assert all(each.sampling.temperature == 0 for each in dispatcher.generations)
    first, off, again = (compared(page, row) for row in range(3))
    assert first[11].startswith("3 of ")
    assert off[11].startswith("0 of ")
    assert (first[12], off[12], again[12]) == (f"{len(usual)} tokens", "differs at 6", "equal")
    expect(page.locator("#compare-text")).to_have_text("hello world")


def test_a_toggle_that_is_refused_says_why_in_its_row(page: Page, url: str, dispatcher: ScriptedDispatcher, tokenizer: Any) -> None:
    def script_of(generation: Generation) -> Script:
        refusal = BadRequest("this worker has no prefix cache") if generation.cache_salt else None
        return Script(batches=[[token] for token in tokenizer.encode("hello").ids], refusal=refusal)

    dispatcher.script_of = script_of
    page.goto(f"{url}#compare")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#compare-rows tr").nth(1)).to_contain_text("this worker has no prefix cache")
    expect(page.locator("#compare-rows tr").nth(0)).to_contain_text("tokens")
    assert sum(bool(each.cache_salt) for each in dispatcher.generations) == 1, "a row that failed is not asked again"


# ---------------------------------------------------------------- keys


class KnownKeys(Keyring):
    def __init__(self) -> None:
        super().__init__("root", None, calendar=time.time)
        self._known = {digest_of(b"reader"): ApiKey(id="key-1", prefix="reader", name="reader", tenant="blue")}


def test_a_panel_needs_an_admin_key_and_says_so(page: Page, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    app = create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), keyring=KnownKeys())
    with served(app) as url:
        page.goto(f"{url}#keys")
        page.get_by_label("This server asks for an API key").fill("reader")
        page.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("alert")).to_contain_text("/admin/v1/keys needs an admin key")
        expect(page.locator("#keys")).to_be_visible()
        page.evaluate("sessionStorage.setItem('pagoda-api-key', 'root')")
        page.reload()
        expect(page.locator("#keys-table tbody tr")).to_have_count(1)
        expect(page.get_by_role("alert")).to_have_count(0)


# ---------------------------------------------------------------- what is only computed

Computed = Callable[[str], Any]


@pytest.fixture(scope="module")
def computed(browser: Browser, assets: TextAssets) -> Iterator[Computed]:
    """An expression over the console's pure modules, on one page for all."""
    modules = {"figures": "figures.js", "toggles": "toggles.js", "waterfall": "waterfall.js", "keys": "keys.js", "usage": "usage.js"}
    imports = "\n".join(f"const {name} = await import('/console/{file}');" for name, file in modules.items())
    app = create_app(dispatcher=ScriptedDispatcher(), catalog=ScriptedCatalog(assets), settings=SurfaceSettings())
    with served(app) as url, watched_page(browser) as page:
        page.goto(url)
        yield lambda expression: page.evaluate(f"async () => {{ {imports} return {expression}; }}")


def test_figures_are_short_and_have_units(computed: Computed) -> None:
    assert computed("[0.123, 9.96, 99.96, 840.4, 999.7, 1240, 12345, 123456, null].map(figures.milliseconds)") == [
        *("0.12 ms", "10.0 ms", "100 ms", "840 ms", "1000 ms", "1.24 s", "12.3 s", "123 s", "–"),
    ]
    assert computed("[0, 7, 9999, 12345, 123456, 4560000, 1.234, null].map(figures.count)") == [
        *("0", "7", "9999", "12.3 k", "123 k", "4.56 M", "1.23", "–"),
    ]
    assert computed("[figures.median([3, 1, 2]), figures.median([4, 1]), figures.median([null]), figures.median([])]") == [
        2,
        2.5,
        None,
        None,
    ]


def test_defaults_are_not_asked_for_but_the_prefix_cache_always_is(computed: Computed) -> None:
    rows = [
        ({}, {"x-pagoda-features": "prefix-cache=on"}),
        ({"prefix-cache": "on", "batching": "on", "variant": ""}, {"x-pagoda-features": "prefix-cache=on"}),
        ({"prefix-cache": "off", "speculation": "off"}, {"x-pagoda-features": "prefix-cache=off, speculation=off"}),
        ({"variant": "int8", "backend": "vllm"}, {"x-pagoda-features": "prefix-cache=on, variant=int8", "x-backend": "vllm"}),
    ]
    for row, headers in rows:
        assert computed(f"toggles.headersOf({msgspec.json.encode(row).decode()})") == headers


def test_what_other_backends_decide_themselves_is_no_choice(computed: Computed) -> None:
    def offered(*backends: str) -> dict[str, list[str]]:
        variants = ", ".join(f'{{name: "{name}", backend: "{name}"}}' for name in backends)
        of = computed(
            f"Object.fromEntries(toggles.togglesOf({{pagoda: {{variants: [{variants}]}}}}).map(({{name, values}}) => [name, values]))"
        )
        return {name: of[name] for name in ("prefix-cache", "batching", "speculation")}

    both = ["on", "off"]
    assert offered("vllm", "tgi") == {"prefix-cache": both, "batching": ["on"], "speculation": ["on"]}
    assert offered("vllm", "pagoda") == {"prefix-cache": both, "batching": both, "speculation": both}


def test_a_trace_is_asked_for_only_where_every_worker_can_tell_one(computed: Computed) -> None:
    model = '{pagoda: {variants: [{name: "own", backend: "pagoda"}, {name: "other", backend: "vllm"}]}}'
    rows = '[{}, {variant: "own"}, {backend: "vllm"}, {variant: "none"}]'
    assert computed(f"{rows}.map(row => toggles.canTrace(row, {model}))") == [False, True, False, False]


def test_the_figures_of_an_answer_are_per_token_and_medians_over_its_runs(computed: Computed) -> None:
    run = "{firstMs: %d, lastMs: %d, totalMs: %d, gapsMs: [0, 30, 10], usage: {prompt_tokens: 20, completion_tokens: 5}}"
    found = computed(f"toggles.summary([{run % (10, 50, 60)}, {run % (20, 60, 80)}, {run % (90, 130, 400)}])")
    assert (found["ttftMs"], found["tpotMs"], found["gapMs"], found["totalMs"], found["cached"]) == (20, 10, 30, 80, 0)
    assert found["tokensPerS"] == pytest.approx(62.5)
    assert computed("[toggles.partsAt('abc', 'abc'), toggles.partsAt('abc', 'abd'), toggles.partsAt('ab', 'abc')]") == [None, 2, 2]


def test_the_bars_of_a_trace_fill_the_whole(computed: Computed) -> None:
    trace = '{total_ms: 10, phases: [{name: "a", start_ms: 0, ms: 4}, {name: "b", start_ms: 4, ms: 6}]}'
    bars = computed(f"waterfall.barsOf({trace})")
    assert [(bar["leftPercent"], bar["widthPercent"]) for bar in bars] == [(0, 40), (40, 60)]
    assert computed('waterfall.barsOf({total_ms: 0, phases: [{name: "a", start_ms: 0, ms: 0}]})')[0]["widthPercent"] == 0
    assert computed("waterfall.stripOf({total_ms: 8, phases_ms: {a: 2, b: 6}})")[1] == {"name": "b", "from": 25, "to": 100}


def test_a_form_becomes_a_key_with_no_more_than_was_filled_in(computed: Computed) -> None:
    empty = {"name": " ci ", "tenant": "", "class": "latency", "models": "", "requests_per_minute": "", "days": ""}
    full = {"name": "ci", "tenant": "blue", "class": "throughput", "models": "tiny, big,", "tokens_per_minute": "500", "monthly_usd": "2.5",
            "days": "2", "admin": "on"}  # fmt: skip
    wanted = [computed(f"keys.wantedKey({msgspec.json.encode(form).decode()}, 1000.4)") for form in (empty, full)]
    assert wanted == [
        {"name": "ci", "class": "latency", "admin": False},
        {"name": "ci", "tenant": "blue", "class": "throughput", "models": ["tiny", "big"], "tokens_per_minute": 500, "monthly_usd": 2.5,
         "expires_at": 173_800, "admin": True},
    ]  # fmt: skip


def test_a_small_budget_is_shown_to_the_last_digit(computed: Computed) -> None:
    limits = "{tokens_per_minute: 20000, monthly_usd: 0.0001}"
    assert computed(f"keys.limitsOf({limits})") == "20.0 k tokens/min, 0.0001 $/month"


def test_hours_without_use_are_bars_of_nothing(computed: Computed) -> None:
    used = "[['01', 5], ['01', 1], ['03', 2]]"
    rows = f"{used}.map(([hour, n]) => ({{start: `1970-01-01T${{hour}}:00:00Z`, prompt_tokens: n, completion_tokens: 1}}))"
    assert computed(f"usage.barsOf({rows}, 3600)") == [
        {"start": 3600, "tokens": 8}, {"start": 7200, "tokens": 0}, {"start": 10800, "tokens": 3},
    ]  # fmt: skip
