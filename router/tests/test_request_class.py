"""A request's class: the key's word, which the header X-Pagoda-Class lowers and never raises."""

import pytest
from scripted import Caller, ScriptedDispatcher, chat

from pagoda_router.errors import BadRequest
from pagoda_router.generation import RequestClass
from pagoda_router.openai.features import class_of

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
