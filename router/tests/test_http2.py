"""The session's own HTTP/2: what arrives in any pieces is the same messages, windows are kept, and what is not gRPC ends the call."""

from contextlib import suppress

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda_router.backends.http2 import ACKNOWLEDGED_BYTES, CallEnd, Http2Call, Http2Error

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9


def call(most: int = 2**20) -> Http2Call:
    return Http2Call("/a.B/C", "worker:1", most_message_bytes=most)


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(*pairs: tuple[str, str], flags: int = 4) -> bytes:
    return frame(HEADERS, hpack.Encoder().encode(pairs), flags)


ANSWERED = frame(SETTINGS, stream=0) + headers((":status", "200"), ("content-type", "application/grpc"))


def message(content: bytes) -> bytes:
    return b"\0" + len(content).to_bytes(4, "big") + content


def frames_of(written: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload)"""
    found, at = [], len(PREFACE) if written.startswith(PREFACE) else 0
    while at < len(written):
        size = int.from_bytes(written[at : at + 3], "big")
        found.append((written[at + 3], written[at + 4], int.from_bytes(written[at + 5 : at + 9], "big"), written[at + 9 : at + 9 + size]))
        at += 9 + size
    return found


def data_of(written: bytes) -> bytes:
    return b"".join(payload for kind, _, _, payload in frames_of(written) if kind == DATA)


def test_the_call_opens_with_what_a_grpc_server_wants_to_know():
    opening = call().to_write()
    assert opening.startswith(PREFACE)
    (block,) = [payload for kind, _, stream, payload in frames_of(opening) if (kind, stream) == (HEADERS, 1)]
    told = dict(hpack.Decoder().decode(block))
    assert told[":path"] == "/a.B/C"
    assert (told[":method"], told["te"], told["content-type"]) == ("POST", "trailers", "application/grpc")


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(1, 400)), st.lists(st.integers(1, 50)), st.booleans())
def test_messages_come_out_whole_however_frames_and_reads_cut_them(contents, frame_sizes, read_sizes, padded):
    stream, sizes = b"".join(map(message, contents)), iter(frame_sizes)
    wire, at = ANSWERED, 0
    while at < len(stream):
        piece = stream[at : at + next(sizes, 1000)]
        wire += frame(DATA, bytes((7,)) + piece + bytes(7), flags=8) if padded else frame(DATA, piece)
        at += len(piece)
    one, found, at, reads = call(), [], 0, iter(read_sizes)
    while at < len(wire):
        size = next(reads, 5000)
        found += one.receive(wire[at : at + size])
        at += size
    assert found == contents
    assert one.end is None


@given(st.lists(st.binary(max_size=40_000), max_size=5), st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(1, 30_000)), max_size=40))
def test_no_more_is_sent_than_both_windows_allow_and_all_of_it_once_they_do(contents, updates):
    one = call()
    one.to_write()
    room = {0: 65_535, 1: 65_535}
    expected = b"".join(map(message, contents))
    for content in contents:
        one.send(content)
    sent = data_of(one.to_write())
    for stream, by in updates:
        room[stream] += by
        one.receive(frame(WINDOW, by.to_bytes(4, "big"), stream=stream))
        sent += data_of(one.to_write())
        assert len(sent) <= min(room.values())
    assert len(sent) == min(len(expected), *room.values())
    for stream in (0, 1):
        one.receive(frame(WINDOW, (2**20).to_bytes(4, "big"), stream=stream))
    assert sent + data_of(one.to_write()) == expected


def test_a_server_that_changes_the_first_window_changes_what_was_sent_already():
    one = call()
    one.to_write()
    one.receive(frame(SETTINGS, (4).to_bytes(2, "big") + (100).to_bytes(4, "big"), stream=0))
    one.send(bytes(200))
    assert len(data_of(one.to_write())) == 100
    one.receive(frame(SETTINGS, (4).to_bytes(2, "big") + (50).to_bytes(4, "big"), stream=0))
    one.receive(frame(WINDOW, (60).to_bytes(4, "big")))
    assert len(data_of(one.to_write())) == 10, "50 were sent too many"


def test_settings_and_pings_are_answered_and_what_was_read_is_acknowledged():
    one = call(2**24)
    one.to_write()
    one.receive(ANSWERED + frame(PING, b"12345678", stream=0))
    assert [(kind, flags, payload) for kind, flags, _, payload in frames_of(one.to_write())] == [(SETTINGS, 1, b""), (PING, 1, b"12345678")]
    content = message(bytes(ACKNOWLEDGED_BYTES))
    for at in range(0, len(content), 2**14):
        one.receive(frame(DATA, content[at : at + 2**14]))
    updates = [(stream, int.from_bytes(payload, "big")) for kind, _, stream, payload in frames_of(one.to_write()) if kind == WINDOW]
    assert [stream for stream, _ in updates] == [0, 1]
    assert all(ACKNOWLEDGED_BYTES <= by <= len(content) for _, by in updates)


def test_trailers_end_the_call_with_their_status_after_what_came_before():
    one = call()
    trailers = headers(("grpc-status", "16"), ("grpc-message", "the token is wrong%21"), flags=5)
    assert one.receive(ANSWERED + frame(DATA, message(b"last")) + trailers + frame(DATA, message(b"late"))) == [b"last"]
    assert one.end == CallEnd(16, "the token is wrong!")
    assert one.end.sentence == "UNAUTHENTICATED: the token is wrong!"


def test_headers_may_come_in_parts():
    one = call()
    block = hpack.Encoder().encode([(":status", "200"), ("x", "y" * 100)])
    one.receive(frame(HEADERS, block[:20]) + frame(CONTINUATION, block[20:50]) + frame(CONTINUATION, block[50:], flags=4))
    assert one.receive(frame(DATA, message(b"a"))) == [b"a"]


def test_an_interim_answer_is_passed_over():
    one = call()
    assert one.receive(headers((":status", "103")) + ANSWERED + frame(DATA, message(b"a"))) == [b"a"]


def test_a_refusal_without_any_answer_is_its_status():
    one = call()
    assert one.receive(headers((":status", "200"), ("grpc-status", "12"), ("grpc-message", "no such method"), flags=5)) == []
    assert one.end == CallEnd(12, "no such method")


def test_larger_bounds_are_used_only_after_they_were_acknowledged():
    one = call()
    one.to_write()
    one.send(bytes(100_000))
    one.to_write()
    larger = b"".join(name.to_bytes(2, "big") + (2**20).to_bytes(4, "big") for name in (4, 5))
    one.receive(frame(SETTINGS, larger, stream=0) + frame(WINDOW, (2**20).to_bytes(4, "big"), stream=0))
    assert [kind for kind, _, _, _ in frames_of(one.to_write())] == [SETTINGS, DATA]


def test_a_large_message_in_many_frames_leaves_nothing_behind():
    one = call(2**24)
    one.receive(ANSWERED)
    content = bytes(2**24)
    wire = message(content)
    found = [got for at in range(0, len(wire), 2**14) for got in one.receive(frame(DATA, wire[at : at + 2**14]))]
    assert found == [content]
    assert one.receive(frame(DATA, message(b"a") + message(b"b"))) == [b"a", b"b"], "what follows is looked at as ever"


ENDS = [
    (frame(RST, (8).to_bytes(4, "big")), "CANCELLED: the stream was reset (code 8)"),
    (frame(RST, (7).to_bytes(4, "big")), "the stream was reset (code 7)"),
    (frame(GOAWAY, bytes(8) + b"not today", stream=0), "not today"),
    (frame(DATA, b"", flags=1), "UNKNOWN: the stream ended without a status"),
    (headers(("grpc-status", "99"), flags=5), "status 99: "),
    (headers(("grpc-status", "ok"), flags=5), "UNKNOWN: "),
]


@pytest.mark.parametrize(("told", "sentence"), ENDS, ids=[sentence for _, sentence in ENDS])
def test_the_call_is_over_when(told, sentence):
    one = call()
    assert one.receive(ANSWERED + told) == []
    assert one.end is not None
    assert one.end.sentence == sentence


def test_a_server_that_is_about_to_leave_lets_the_stream_go_on():
    one = call()
    assert one.receive(ANSWERED + frame(GOAWAY, (1).to_bytes(4, "big") + bytes(4), stream=0) + frame(DATA, message(b"a"))) == [b"a"]
    assert one.end is None


FAULTS = [
    ("another status", headers((":status", "404"))),
    ("HTTP/1", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ("data before headers", frame(DATA, message(b"a"))),
    ("a compressed message", ANSWERED + frame(DATA, b"\1" + message(b"a")[1:])),
    ("a message that is too large", ANSWERED + frame(DATA, b"\0" + (2**21).to_bytes(4, "big"))),
    ("a frame that is too large", ANSWERED + (2**14 + 1).to_bytes(3, "big") + bytes(6)),
    ("padding without end", ANSWERED + frame(DATA, b"\x09a", flags=8)),
    ("a frame amid headers", frame(HEADERS, b"") + frame(PING, bytes(8), stream=0)),
    ("headers without end", frame(HEADERS, b"") + frame(CONTINUATION, bytes(2**14)) * 5),
    ("headers that are none", frame(HEADERS, b"\xff\xff\xff\xff\xff\xff\xff", flags=4)),
    ("data of another stream", ANSWERED + frame(DATA, message(b"a"), stream=3)),
    ("a window beyond its bound", frame(WINDOW, (2**31 - 1).to_bytes(4, "big"))),
    ("settings cut off", frame(SETTINGS, bytes(5), stream=0)),
    ("a ping of another size", frame(PING, bytes(7), stream=0)),
    ("settings of a stream", frame(SETTINGS)),
    ("a window's growth of another size", frame(WINDOW, bytes(3))),
    ("two answers", ANSWERED + headers((":status", "200"))),
    ("a push", ANSWERED + frame(PUSH, bytes(8))),
]


@pytest.mark.parametrize("told", [told for _, told in FAULTS], ids=[name for name, _ in FAULTS])
def test_what_is_no_grpc_is_an_error(told):
    with pytest.raises(Http2Error):
        call().receive(told)


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_at_all_raise_anything_else(junk, answered):
    one = call()
    with suppress(Http2Error):
        one.receive((ANSWERED if answered else b"") + junk)


@given(st.sampled_from(range(10)), st.integers(0, 255), st.sampled_from([0, 1, 2]), st.binary(max_size=40))
def test_no_frame_at_all_raises_anything_else(kind, flags, stream, payload):
    one = call()
    try:
        one.receive(ANSWERED + frame(kind, payload, flags, stream))
    except Http2Error:
        pass
