"""The chat in a real browser: streaming, stopping, errors, keys, copy as curl; and offline, under its own policy."""

import asyncio
import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from scripted import Script, ScriptedCatalog, ScriptedDispatcher, served
from tokenizers import Tokenizer

from pagoda_router.errors import Overloaded
from pagoda_router.generation import EndReason
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.keyring import Keyring


@pytest.fixture
def say(dispatcher: ScriptedDispatcher, tokenizer: Tokenizer) -> Script:
    dispatcher.script = Script(batches=[[i] for i in tokenizer.encode("größer 🎉 <b>hello</b> world").ids], cached_tokens=3)
    return dispatcher.script


def serve(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, api_key: str | None = None) -> object:
    keyring = Keyring(api_key, None, calendar=time.time)
    return served(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings(), keyring=keyring))


def send(page: Page, text: str) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def test_a_question_streams_its_answer_with_figures(
    page: Page, say: Script, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.goto(url)
        expect(page.locator("#readiness")).to_have_text("ready")
        page.get_by_label("System message").fill("the fox")
        page.get_by_label("Max tokens").fill("50")
        page.locator("#temperature").fill("0.5")
        send(page, "hello")
        expect(page.locator(".turn.assistant")).to_have_text("größer 🎉 <b>hello</b> world")
        expect(page.locator("#figures")).to_have_text(
            re.compile(r"first token [\d.]+ m?s · \d+(\.\d)? tokens/s · \d+ \(3 cached\) \+ \d+ tokens")
        )
        send(page, "again")
        expect(page.locator(".turn.assistant")).to_have_count(2)
        expect(page.locator("#stop")).to_be_hidden()
        page.screenshot(path=os.environ.get("PAGODA_SCREENSHOT") or tmp_path / "playground.png")
    first, second = dispatcher.generations
    assert (first.max_tokens, first.sampling.temperature) == (50, 0.5)
    expected = (
        "<|system|>the fox<|end|><|user|>hello<|end|><|assistant|>größer 🎉 <b>hello</b> world<|end|><|user|>again<|end|><|assistant|>"
    )
    assert tokenizer.decode(list(second.prompt_ids), skip_special_tokens=False) == expected


def test_text_shows_while_it_arrives_and_stop_ends_the_work(
    page: Page, say: Script, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog
) -> None:
    say.pause_before = {3: asyncio.Event()}  # never set: only Stop ends this
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.goto(url)
        send(page, "hello")
        expect(page.locator(".turn.assistant.streaming")).to_contain_text("größer")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".turn.assistant .note")).to_have_text("stopped")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        deadline_s = time.monotonic() + 30  # the page says so at once; the server hears of it a moment later, in its own thread
        while not dispatcher.left.is_set() and time.monotonic() < deadline_s:
            page.wait_for_timeout(20)
        assert dispatcher.left.is_set()
        assert dispatcher.running == 0


def test_a_refusal_is_shown_and_the_question_given_back(page: Page, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    dispatcher.script = Script(refusal=Overloaded("all workers are busy: try again in 3 s", retry_after_s=3))
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.goto(url)
        send(page, "hello")
        expect(page.get_by_role("alert")).to_have_text("all workers are busy: try again in 3 s")
        expect(page.get_by_label("Message", exact=True)).to_have_value("hello")


def test_a_failure_mid_answer_keeps_the_text_and_says_why(
    page: Page, say: Script, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog
) -> None:
    say.reason, say.detail = EndReason.ENGINE_ERROR, "the engine was restarted: send it again"
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.goto(url)
        send(page, "hello")
        expect(page.get_by_role("alert")).to_have_text("the engine was restarted: send it again")
        expect(page.locator(".turn.assistant")).to_contain_text("hello")


def test_a_guarded_server_asks_for_the_key_and_keeps_it_in_the_tab(
    page: Page, say: Script, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog
) -> None:
    with serve(dispatcher, catalog, api_key="secret") as url:  # type: ignore[attr-defined]
        page.goto(url)
        page.get_by_label("This server asks for an API key").fill("wrong")
        page.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("alert")).to_contain_text("not the right one")
        page.get_by_label("This server asks for an API key").fill("secret")
        page.get_by_role("button", name="Use key").click()
        expect(page.locator("#readiness")).to_have_text("ready")
        page.reload()
        send(page, "hello")
        expect(page.locator(".turn.assistant")).to_contain_text("world")


def test_copy_as_curl_gives_a_command_that_works(page: Page, say: Script, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.goto(url)
        expect(page.locator("#readiness")).to_have_text("ready")
        page.get_by_label("Message", exact=True).fill('it\'s "quoted" & $HOME')
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        command = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n")
    body = json.loads(re.search(r"-d '(.*)'$", command, re.DOTALL)[1].replace("'\\''", "'"))  # type: ignore[index]
    assert body["messages"] == [{"role": "user", "content": 'it\'s "quoted" & $HOME'}]


def test_a_model_that_is_not_ready_says_why(page: Page, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> None:
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.goto(url)
        expect(page.locator("#readiness")).to_have_text("ready")
        page.get_by_label("Model", exact=True).select_option("org/asleep")
        expect(page.locator("#readiness")).to_have_text("no worker yet")


def test_a_model_that_loses_its_worker_says_so_while_somebody_looks(
    page: Page, dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog
) -> None:
    with serve(dispatcher, catalog) as url:  # type: ignore[attr-defined]
        page.clock.install()
        page.goto(url)
        expect(page.locator("#readiness")).to_have_text("ready")
        catalog.entries[0] = replace(catalog.entries[0], ready=False, reason="its worker died")
        page.clock.fast_forward(20_000)
        expect(page.locator("#readiness")).to_have_text("its worker died")
