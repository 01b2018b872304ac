"""What an engine said last, whoever wrote it."""

import asyncio
import logging
import sys

import pytest

from pagoda_worker.front.engine_stderr import MAX_LINE, EngineStderr, said
from pagoda_worker.logs import LineFormatter


def logged(message: str, *, error: Exception | None = None) -> str:
    trace = None
    if error is not None:
        try:
            raise error
        except Exception:
            trace = sys.exc_info()
    return LineFormatter().format(logging.LogRecord("engine", logging.ERROR, "", 0, message, (), trace))


LINES = [
    ("plain words", "plain words"),
    (logged('it said "no"'), 'it said "no"'),
    (logged("the engine process ends", error=ValueError("no such kernel")), "the engine process ends: ValueError: no such kernel"),
    ('someone msg="\\q" else', 'someone msg="\\q" else'),
    ("x" * 1000, "x" * MAX_LINE + "…"),
    ("   ", ""),
]


@pytest.mark.parametrize(("line", "gist"), LINES, ids=range(len(LINES)))
def test_the_gist_of_a_line(line: str, gist: str):
    assert said(line) == gist


async def test_everything_is_passed_on_and_the_last_line_kept():
    passed: list[bytes] = []
    stderr, stream = EngineStderr(passed.append), asyncio.StreamReader()
    for piece in (b"first\nsec", b"ond\n", b"\n\n"):
        stream.feed_data(piece)
    stream.feed_eof()
    await stderr.pass_on(stream)
    assert b"".join(passed) == b"first\nsecond\n\n\n"
    assert stderr.last_line == "second"
