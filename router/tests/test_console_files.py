"""The console's files as HTTP answers (apart from the browser's tests, whose driver holds the event loop)."""

import re
from pathlib import Path

from scripted import Caller

STATIC = Path(__file__).parents[1] / "src/pagoda_router/console/static"


async def test_pages_forbid_inline_scripts_and_other_hosts(call: Caller) -> None:
    await call("GET", "/")
    assert call.headers["content-type"] == "text/html; charset=utf-8"
    policy = call.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.search(rb"<script(?![^>]*src=)|\son\w+=|\sstyle=|https?://", call.body) is None


async def test_an_unchanged_page_is_not_sent_again(call: Caller) -> None:
    await call("GET", "/console/console.js")
    etag = call.headers["etag"]
    again = Caller(call.app)
    await again("GET", "/console/console.js", headers={"if-none-match": etag})
    assert (again.status, again.body) == (304, b"")


def test_nothing_is_written_into_the_page_as_markup() -> None:
    scripts = [path.read_text() for path in STATIC.glob("*.js")]
    assert scripts
    assert not [
        word for text in scripts for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in text
    ]


def test_every_file_of_the_console_is_served_with_a_type() -> None:
    assert {path.suffix for path in STATIC.iterdir()} <= {".html", ".css", ".js", ".svg"}
