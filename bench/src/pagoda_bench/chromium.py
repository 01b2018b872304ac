"""The machine's own Chromium without a window, for tests of the console. Needs the development extra (playwright) and Debian's chromium.

Tests of router and bench open pages with it; knows nothing of what is on them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OWN = ("http://127.0.0.1:", "blob:http://127.0.0.1:")


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, width: int = 1100, height: int = 720) -> Iterator[Page]:
    """Asserts at its end that the page logged no error, broke no policy of its own, and asked nobody but this machine."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], viewport={"width": width, "height": height})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Content Security Policy" in message.text else None)
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(OWN) else None)
    yield page
    context.close()
    assert problems == []
