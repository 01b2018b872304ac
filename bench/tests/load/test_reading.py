"""Server-sent events and OpenAI chunks, however the network cuts them."""

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pagoda_bench.load.reading import StreamReading
from pagoda_bench.load.sse import EventSplitter

lines = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)


def cut(content: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    return [content[a:b] for a, b in itertools.pairwise(edges)]


@given(
    events=st.lists(st.lists(lines, min_size=1, max_size=3), max_size=6),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    comment=lines,
    places=st.lists(st.integers(min_value=0), max_size=20),
)
@example(events=[["a"], ["b"]], newline="\r\n", comment="", places=[8, 9, 10, 11])
def test_events_are_the_same_however_they_are_cut(events: list[list[str]], newline: str, comment: str, places: list[int]) -> None:
    content = "".join(
        f":{comment}{newline}id: 7{newline}" + "".join(f"data: {line}{newline}" for line in event) + newline for event in events
    )
    splitter = EventSplitter()
    found = [event for piece in cut(content.encode(), places) for event in splitter.feed(piece)]
    assert found == ["\n".join(event).encode() for event in events]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data\n\n", [b""]),
        (b"event: x\n\n", []),
        (b"data: a\n", []),
        (b"database: a\n\n", []),
    ],
)
def test_lines_are_read_as_the_standard_says(content: bytes, found: list[bytes]) -> None:
    assert EventSplitter().feed(content) == found


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def choice(**content: object) -> bytes:
    return event(choices=[{"index": 0, **content}])


def test_the_opening_role_and_the_closing_usage_are_no_tokens() -> None:
    reading = StreamReading(keep_text=True)
    reading.feed(choice(delta={"role": "assistant", "content": ""}), 1.0)
    reading.feed(choice(delta={"content": "a"}), 2.0)
    reading.feed(choice(delta={"content": "b"}) + choice(delta={}, finish_reason="length"), 3.0)
    reading.feed(event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 2}) + b"data: [DONE]\n\n", 4.0)
    assert list(reading.arrivals) == [2.0, 3.0]
    assert reading.texts == ["a", "b"]
    assert reading.finished_s == 3.0
    assert reading.usage is not None
    assert reading.usage.completion_tokens == 2
    assert reading.failure is None


def test_reasoning_and_tool_calls_are_tokens() -> None:
    reading = StreamReading()
    reading.feed(choice(delta={"reasoning_content": "hm"}), 1.0)
    reading.feed(choice(delta={"reasoning": "hm"}), 2.0)
    reading.feed(choice(delta={"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}), 3.0)
    assert list(reading.arrivals) == [1.0, 2.0, 3.0]


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("content", "failure"),
    [
        (choice(text="a"), "truncated"),
        (choice(text="a", finish_reason="stop"), "truncated"),
        (choice(text="a") + event(error={"message": "engine died"}) + DONE, "stream_error"),
        (choice(text="a") + b"data: {\n\n" + DONE, "stream_error"),
        (choice(text="", finish_reason="stop") + DONE, "no_text"),
        (choice(text="a", finish_reason="stop") + DONE, None),
    ],
)
def test_a_stream_that_is_not_whole_counts_as_an_error(content: bytes, failure: str | None) -> None:
    reading = StreamReading()
    reading.feed(content, 1.0)
    assert reading.failure == failure
