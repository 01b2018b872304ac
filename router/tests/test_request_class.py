"""A request's class: the key's word, which the header X-Pagoda-Class lowers and never raises."""

import pytest
from scripted import Caller, ScriptedDispatcher, chat

from pagoda_router.errors import BadRequest
from pagoda_router.generation import RequestClass
from pagoda_router.openai.features import class_of, deadline_s_of

LATENCY, THROUGHPUT = RequestClass.LATENCY, RequestClass.THROUGHPUT

CLASSES = [
    ([], LATENCY, LATENCY),
    (["latency"], LATENCY, LATENCY),
    (["throughput"], LATENCY, THROUGHPUT),
    ([" Throughput "], LATENCY, THROUGHPUT),
    (["throughput", "latency"], LATENCY, THROUGHPUT),
    (["latency"], THROUGHPUT, THROUGHPUT),
    ([], THROUGHPUT, THROUGHPUT),
]


@pytest.mark.parametrize(("sent", "allowed", "expected"), CLASSES, ids=str)
def test_a_header_lowers_the_class_and_never_raises_it(sent, allowed, expected):
    assert class_of([(b"x-pagoda-class", value.encode()) for value in sent], allowed) is expected


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(BadRequest, match="'urgent' is none of latency, throughput"):
        class_of([(b"x-pagoda-class", b"urgent")], LATENCY)


async def test_the_header_reaches_the_generation(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    await call("POST", "/v1/chat/completions", chat(), {"X-Pagoda-Class": "throughput"})
    assert call.status == 200
    assert (dispatcher.generations[0].tenant, dispatcher.generations[0].request_class) == ("", THROUGHPUT)


@pytest.mark.parametrize(("sent", "expected"), [([], None), (["1500"], 1.5), (["2000", " 500 "], 0.5), (["86400000"], 86400.0)], ids=str)
def test_a_deadline_is_whole_milliseconds_and_the_shortest_counts(sent, expected):
    assert deadline_s_of([(b"x-pagoda-deadline-ms", value.encode()) for value in sent]) == expected


@pytest.mark.parametrize("wrong", ["", "0", "-5", "1.5", "5s", "86400001", "999999999999"])
def test_what_is_no_deadline_is_refused(wrong):
    with pytest.raises(BadRequest, match="X-Pagoda-Deadline-Ms"):
        deadline_s_of([(b"x-pagoda-deadline-ms", wrong.encode())])


async def test_the_deadline_reaches_the_generation(call: Caller, dispatcher: ScriptedDispatcher) -> None:
    await call("POST", "/v1/chat/completions", chat(), {"X-Pagoda-Deadline-Ms": "2500"})
    assert dispatcher.generations[0].deadline_s == 2.5
