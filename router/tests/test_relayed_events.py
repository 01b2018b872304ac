"""Events of a foreign stream on their way through: renamed, usage taken out, nothing lost however the network cuts them."""

from itertools import pairwise

import msgspec
import pytest
import recorded
from hypothesis import example, given
from hypothesis import strategies as st

from pagoda_router.backends import sse
from pagoda_router.backends.openai_http import DIALECTS
from pagoda_router.backends.sse import EventRewriter, NotAnAnswer, whole_answer
from pagoda_router.generation import Usage

VLLM = b"".join(recorded.VLLM_STREAM)


def through(chunks, *, wants_usage=False, manners=sse.OPENAIS):
    rewriter, data, pieces = EventRewriter("chat", wants_usage=wants_usage, manners=manners), b"", []
    for chunk in chunks:
        pieces.append(rewriter.feed(chunk))
        data += pieces[-1].data
    return rewriter, data, pieces


@given(cuts=st.sets(st.integers(1, len(VLLM) - 1)), carriage=st.booleans())
def test_the_same_events_leave_however_the_network_cuts_them(cuts, carriage):
    source = VLLM.replace(b"\n", b"\r\n") if carriage else VLLM
    edges = [0, *sorted(cuts), len(source)]
    chunks = [source[a:b] for a, b in pairwise(edges)]
    rewriter, data, pieces = through(chunks)
    assert (data, rewriter.usage) == (through([VLLM])[1], Usage(9, 4, 3))
    assert sum(piece.tokens for piece in pieces) == 4
    assert [reason for piece in pieces for reason in piece.finish_reasons] == ["stop"]
    assert [piece.done for piece in pieces].count(True) == 1


TEXTS = st.text(st.sampled_from('ab "\\\n{}:é,'), max_size=6)


def content(text):
    return {"delta": {"content": text}, "logprobs": None, "finish_reason": None}


CHOICES = st.sampled_from(
    [
        content,
        lambda text: {"text": text, "logprobs": None, "finish_reason": None},
        lambda text: {"delta": {"reasoning_content": text}, "finish_reason": None},
        lambda text: {"delta": {"content": text}, "logprobs": None, "finish_reason": "stop"},
    ]
)
HEADS = st.sampled_from([{"id": "1", "model": "upstream"}, {"id": "2", "model": "upstream"}, {"id": "1", "model": "other"}, {}])
TAILS = st.sampled_from([{}, {}, {"usage": None}, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, {"model": "upstream"}])
SHAPES = st.lists(st.tuples(HEADS, CHOICES, TAILS), min_size=1, max_size=2)


@given(SHAPES, st.lists(st.tuples(st.integers(0, 1), TEXTS), max_size=8))
@example([({}, content, {"model": "upstream"})], [(0, "a"), (0, "b")])
@example([({"model": "upstream"}, content, {})], [(0, 'a"'), (0, "b"), (0, 'a"'), (0, "")])
def test_an_event_like_the_one_before_is_rewritten_as_any_other(shapes, parts):
    """Alone it may go the short way; two in one read never do."""
    payloads = []
    for number, text in parts:
        head, choice, tail = shapes[number % len(shapes)]
        payloads.append(msgspec.json.encode({**head, "choices": [{"index": 0, **choice(text)}], **tail}))
    events = [b"data: " + payload + b"\n\n" for payload in payloads]
    one_by_one, together = through(events), through([b"".join(events) + b": bye\n\n"])
    assert one_by_one[1] == together[1]
    assert one_by_one[0].usage == together[0].usage
    assert sum(piece.tokens for piece in one_by_one[2]) == sum(piece.tokens for piece in together[2])
    reasons = [[reason for piece in pieces for reason in piece.finish_reasons] for pieces in (one_by_one[2], together[2])]
    assert reasons[0] == reasons[1]


def test_plain_text_goes_the_short_way():
    rewriter = EventRewriter("chat", wants_usage=False)
    event = recorded.VLLM_TOKENS[0]
    assert rewriter._usual is None
    rewriter.feed(event)
    assert rewriter._usual is not None
    assert rewriter._usual.rewritten(event.replace(b"Hello", b"Bye")) == rewriter.feed(event.replace(b"Hello", b"Bye")).data
    assert rewriter._usual.rewritten(event.replace(b"Hello", rb"\"")) is None
    assert rewriter._usual.rewritten(event + event) is None


def test_only_the_model_changes_and_not_what_the_text_says_of_models():
    _, data, _ = through([VLLM])
    events = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in data.split(b"\n\n")[:-1]]
    assert {event["model"] for event in events} == {"chat"}
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == 'Hello "model":"x" \n\n'


@pytest.mark.parametrize("wants_usage", [False, True])
def test_the_usage_chunk_reaches_only_a_client_that_asked(wants_usage):
    rewriter, data, _ = through([VLLM], wants_usage=wants_usage)
    assert (b'"usage":{' in data) is wants_usage
    assert rewriter.usage == Usage(9, 4, 3)


def test_a_stream_of_tgi_is_framed_as_openai_does():
    rewriter, data, pieces = through(recorded.TGI_STREAM)
    assert data.count(b"data: {") == 2
    assert b"\n\n:" not in data
    assert (rewriter.usage, pieces[-1].done) == (Usage(9, 0, 2), True)


def test_the_ends_of_tgis_completions_are_openais_and_every_prompt_is_billed():
    rewriter, data, pieces = through(recorded.TGI_TWO_PROMPTS, manners=DIALECTS["tgi"].manners)
    assert rewriter.usage == Usage(11, 0, 4)
    assert [reason for piece in pieces for reason in piece.finish_reasons] == ["stop", "stop"]
    events = [msgspec.json.decode(event.removeprefix(b"data: ")) for event in data.split(b"\n\n")[:-1]]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop", "stop"]


@pytest.mark.parametrize(
    "event", [recorded.VLLM_STREAM_ERROR, recorded.TGI_STREAM_ERROR, recorded.TGI_2_STREAM_ERROR], ids=["vllm", "tgi", "tgi 2"]
)
def test_an_error_ends_a_stream_and_what_follows_does_not_count(event):
    _, data, pieces = through([recorded.VLLM_ROLE + event + b"".join(recorded.VLLM_TOKENS) + recorded.DONE])
    assert data.count(b"data: ") == 1
    assert pieces[0].error is not None
    assert not pieces[0].done


def test_a_text_about_errors_is_no_error():
    event = recorded.VLLM_TOKENS[0].replace(b"Hello", rb"{\"error\":{\"message\":\"x\"}}")
    assert through([event])[2][0].error is None


def test_an_event_that_does_not_end_is_not_collected_for_ever(monkeypatch):
    monkeypatch.setattr(sse, "LARGEST_EVENT_BYTES", 100)
    with pytest.raises(NotAnAnswer, match="larger than 100 bytes"):
        through([b"data: " + b"x" * 60, b"x" * 60])


def test_a_whole_answer_keeps_its_bytes_but_for_the_model():
    body = msgspec.json.encode(recorded.VLLM_WHOLE)
    data, usage, reasons = whole_answer(body, "chat")
    assert msgspec.json.decode(data) == recorded.VLLM_WHOLE | {"model": "chat"}
    assert (usage, reasons) == (Usage(9, 0, 2), ("length",))


def test_a_whole_answer_of_tgi_ends_in_openais_words():
    body = msgspec.json.encode(recorded.VLLM_WHOLE).replace(b'"length"', b'"eos_token"')
    data, _, reasons = whole_answer(body, "chat", DIALECTS["tgi"].manners)
    assert (msgspec.json.decode(data)["choices"][0]["finish_reason"], reasons) == ("stop", ("stop",))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'[{"ok": true}]', b'{"choices": []}', b'{"ok": true}'])
def test_what_is_no_completion_is_not_passed_off_as_one(body):
    with pytest.raises(NotAnAnswer):
        whole_answer(body, "chat")
