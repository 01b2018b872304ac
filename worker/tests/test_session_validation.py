"""What a network can send, against what the engine gets: every wrong field is named, none reaches the engine."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import FACTS

from pagoda_worker.errors import ContextTooLong, NotImplementedYet, RequestRefused
from pagoda_worker.front.validation import to_request
from pagoda_worker.request import Request, Sampling, StructuredOutput
from pagoda_worker.wire import worker_pb2 as pb

NAN, INF = float("nan"), float("inf")


def submit(**fields: Any) -> pb.Submit:
    return pb.Submit(**{"request_id": 1, "model": "tiny", "prompt_ids": [1, 2, 3], "max_tokens": 5, **fields})


def sampling(**fields: Any) -> dict[str, pb.Sampling]:
    return {"sampling": pb.Sampling(**{"top_p": 1.0, **fields})}


def bias(token_id: int, value: float) -> list[pb.LogitBias]:
    return [pb.LogitBias(token_id=token_id, bias=value)]


def words(*ids: list[int]) -> list[pb.TokenIds]:
    return [pb.TokenIds(ids=each) for each in ids]


def structured(**kind: Any) -> dict[str, pb.StructuredOutput]:
    return {"structured": pb.StructuredOutput(**kind)}


def packed(*ids: int) -> dict[str, Any]:
    return {"prompt_ids": [], "packed_prompt_ids": b"".join(each.to_bytes(4, "little") for each in ids)}


INVALID = [
    (packed(5, 1000), "prompt_ids", "holds token 1000"),
    ({"packed_prompt_ids": bytes(4)}, "packed_prompt_ids", "the prompt is there twice"),
    ({"prompt_ids": [], "packed_prompt_ids": bytes(6)}, "packed_prompt_ids", "6 bytes are no ids of 4 bytes each"),
    ({"prompt_ids": []}, "prompt_ids", "the prompt is empty"),
    ({"prompt_ids": [5, 1000]}, "prompt_ids", "holds token 1000; the model's vocabulary has 1000, so ids end at 999"),
    ({"max_tokens": 0}, "max_tokens", "ask for at least one output token"),
    ({"min_tokens": 6}, "min_tokens", "min_tokens is 6 and max_tokens 5"),
    ({"n": 5}, "n", "5 sequences were asked for in n; the limit is 4"),
    ({"n": 2, "resume_ids": [1]}, "resume_ids", "2 sequences cannot resume one output"),
    ({"resume_ids": [1, 2, 3, 4, 5]}, "resume_ids", "nothing is left to compute"),
    ({"resume_ids": [4_000_000_000]}, "resume_ids", "holds token 4000000000"),
    ({"stop_token_ids": [1000]}, "stop_token_ids", "holds token 1000"),
    ({"stop_token_ids": [1] * 129}, "stop_token_ids", "at most 128"),
    ({"top_logprobs": 6}, "top_logprobs", "6 logprobs were asked for in top_logprobs; the limit is 5"),
    ({"cache_salt": bytes(257)}, "cache_salt", "257 bytes; at most 256"),
    (sampling(temperature=-0.1), "sampling.temperature", "is -0.1; it must be a number from 0 to 100"),
    (sampling(temperature=NAN), "sampling.temperature", "is nan"),
    (sampling(temperature=INF), "sampling.temperature", "is inf"),
    (sampling(top_p=0.0), "sampling.top_p", "must be above 0 and at most 1"),
    (sampling(top_p=1.5), "sampling.top_p", "from 0 to 1"),
    (sampling(top_p=NAN), "sampling.top_p", "is nan"),
    (sampling(min_p=-1.0), "sampling.min_p", "from 0 to 1"),
    (sampling(frequency_penalty=3.0), "sampling.frequency_penalty", "from -2 to 2"),
    (sampling(presence_penalty=NAN), "sampling.presence_penalty", "is nan"),
    (sampling(repetition_penalty=-1.0), "sampling.repetition_penalty", "from 0 to 100"),
    (sampling(repetition_penalty=INF), "sampling.repetition_penalty", "is inf"),
    (sampling(logit_bias=bias(1000, 1.0)), "sampling.logit_bias", "holds token 1000"),
    (sampling(logit_bias=bias(1, NAN)), "sampling.logit_bias", "the bias of token 1 is nan"),
    (sampling(logit_bias=bias(1, 101.0)), "sampling.logit_bias", "from -100 to 100"),
    (sampling(logit_bias=bias(1, 1.0) * 1025), "sampling.logit_bias", "at most 1024"),
    (sampling(allowed_token_ids=[5, 1000]), "sampling.allowed_token_ids", "holds token 1000"),
    (sampling(allowed_token_ids=[5] * 1001), "sampling.allowed_token_ids", "more than there are"),
    (sampling(bad_words=words([5], [1, 1000])), "sampling.bad_words", "holds token 1000"),
    (sampling(bad_words=words([])), "sampling.bad_words", "no ids, or more than 64"),
    (sampling(bad_words=words([1] * 65)), "sampling.bad_words", "no ids, or more than 64"),
    (sampling(bad_words=words([1]) * 1025), "sampling.bad_words", "at most 1024"),
    ({"prompt_logprobs": 6}, "prompt_logprobs", "6 logprobs were asked for in prompt_logprobs; the limit is 5"),
    (structured(), "structured", "structured says nothing"),
    (structured(json_object=False), "structured", "structured says nothing"),
    (structured(regex=" "), "structured.regex", "is empty"),
    (structured(json_schema='{"type": '), "structured.json_schema", "is not JSON"),
    (structured(json_schema="true"), "structured.json_schema", "must be a JSON object"),
    (structured(json_schema='{"a":' * 20_000), "structured.json_schema", "is not JSON"),
    (structured(grammar="x" * (1 << 18) + "x"), "structured.grammar", "has 262145 bytes; at most 262144"),
    (structured(choices=pb.Choices(choices=[])), "structured.choices", "holds 0 texts; it must hold 1 to 1024"),
    (structured(choices=pb.Choices(choices=["a", ""])), "structured.choices", "none of them empty"),
    ({"toggles": pb.FeatureToggles(no_batching=True), "n": 2}, "toggles.no_batching", "2 sequences cannot run alone: ask for n = 1"),
    ({"embedding": True, "n": 2}, "n", "an embedding has no output: leave n out"),
    ({"embedding": True, "prompt_logprobs": 0}, "prompt_logprobs", "an embedding has no output"),
    ({"embedding": True, "resume_ids": [1]}, "resume_ids", "an embedding has no output"),
    ({"embedding": True, **structured(json_object=True)}, "structured", "an embedding has no output"),
]


@pytest.mark.parametrize(("fields", "param", "message"), INVALID, ids=lambda value: value if isinstance(value, str) else "")
def test_an_impossible_field_is_refused_by_name(fields: dict[str, Any], param: str, message: str):
    with pytest.raises(RequestRefused) as refusal:
        to_request(submit(**fields), "1:1", FACTS)
    assert type(refusal.value) is RequestRefused
    assert refusal.value.param == param
    assert message in str(refusal.value)


def test_a_field_of_a_newer_protocol_is_not_ignored_either():
    newer = pb.Submit.FromString(submit().SerializeToString() + bytes([0xF8, 0x07, 0x01]))  # field 127, varint 1
    with pytest.raises(NotImplementedYet, match="field number 127"):
        to_request(newer, "1:1", FACTS)


def test_a_prompt_over_the_context_is_refused_with_both_numbers():
    with pytest.raises(ContextTooLong, match=r"the prompt has 256 tokens; the model takes 256"):
        to_request(submit(prompt_ids=[1] * 256), "1:1", FACTS)
    with pytest.raises(ContextTooLong, match=r"the prompt has 250 tokens and 6 are resumed"):
        to_request(submit(prompt_ids=[1] * 250, resume_ids=[1] * 6, max_tokens=7), "1:1", FACTS)


def test_the_longest_prompt_that_leaves_room_for_a_token_is_taken():
    assert len(to_request(submit(prompt_ids=[1] * 255), "1:1", FACTS).prompt_ids) == 255


def test_nothing_said_is_greedy():
    request = to_request(submit(), "3:1", FACTS)
    assert request == Request(request_id="3:1", prompt_ids=[1, 2, 3], max_tokens=5, sampling=Sampling())


def test_everything_said_arrives():
    asked = pb.Sampling(temperature=0.5, top_p=0.5, top_k=2000, min_p=0.25, frequency_penalty=-2, presence_penalty=2, seed=2**64 - 1)
    asked.logit_bias.extend(bias(7, -100.0))
    request = to_request(
        submit(
            n=2,
            sampling=asked,
            min_tokens=5,
            stop_token_ids=[9],
            ignore_eos=True,
            top_logprobs=0,
            cache_salt=b"salt",
            priority=-3,
            deadline_us=1_500_000,
            toggles=pb.FeatureToggles(no_prefix_cache=True, no_speculation=True),
            speculation=pb.Speculation(off=True),
            trace=pb.TraceContext(traceparent="00-1-2-01", want_timings=True),
        ),
        "1:1",
        FACTS,
    )
    assert request.max_draft_tokens == 0
    expected = Sampling(
        temperature=0.5,
        top_p=0.5,
        top_k=1000,
        min_p=0.25,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        repetition_penalty=1.0,
        seed=2**64 - 1,
        logit_bias={7: -100.0},
    )
    assert request.sampling == expected
    assert (request.n, request.min_tokens, request.stop_token_ids, request.ignore_eos, request.top_logprobs) == (2, 5, [9], True, 0)
    assert (request.cache_salt, request.priority, request.deadline_s, request.use_prefix_cache) == (b"salt", -3, 1.5, False)
    assert request.want_timings
    assert not request.runs_alone
    assert to_request(submit(toggles=pb.FeatureToggles(no_batching=True)), "1:1", FACTS).runs_alone


STRUCTURES = [
    (structured(json_object=True), StructuredOutput(kind="json_object")),
    (structured(json_schema='{"type": "null"}'), StructuredOutput(kind="json_schema", text='{"type": "null"}')),
    (structured(regex="a+"), StructuredOutput(kind="regex", text="a+")),
    (structured(grammar='start: "a"'), StructuredOutput(kind="grammar", text='start: "a"')),
    (structured(choices=pb.Choices(choices=["a", "b"])), StructuredOutput(kind="choice", choices=("a", "b"))),
]


@pytest.mark.parametrize(("fields", "expected"), STRUCTURES, ids=[each.kind for _, each in STRUCTURES])
def test_a_structure_arrives_as_its_kind(fields: dict[str, Any], expected: StructuredOutput):
    assert to_request(submit(**fields), "1:1", FACTS).structured == expected


def test_a_model_without_a_usable_tokenizer_refuses_structure_only():
    facts = replace(FACTS, structured_output=False)
    with pytest.raises(NotImplementedYet, match=r"leave structured out") as refusal:
        to_request(submit(**structured(json_object=True)), "1:1", facts)
    assert refusal.value.param == "structured"
    assert to_request(submit(), "1:1", facts).structured is None


def test_an_embedding_needs_no_word_of_its_output():
    request = to_request(submit(embedding=True, max_tokens=0, min_tokens=3), "1:1", FACTS)
    assert (request.embedding, request.max_tokens, request.min_tokens) == (True, 1, 0)


def test_ids_that_are_wanted_or_unwanted_arrive():
    asked = sampling(allowed_token_ids=[3, 4], bad_words=words([5], [6, 7]))
    request = to_request(submit(prompt_logprobs=0, **asked), "1:1", FACTS)
    assert (request.sampling.allowed_token_ids, request.sampling.bad_words, request.prompt_logprobs) == ([3, 4], [[5], [6, 7]], 0)


floats = st.floats(width=32)
uint32 = st.integers(0, 2**32 - 1)


@given(
    prompt_ids=st.lists(uint32, max_size=8),
    n=uint32,
    max_tokens=uint32,
    stop_token_ids=st.lists(uint32, max_size=4),
    top_logprobs=st.none() | uint32,
    temperature=floats,
    top_p=floats,
    min_p=floats,
    repetition_penalty=floats,
)
def test_whatever_comes_is_either_refused_or_possible(
    prompt_ids: list[int], n: int, max_tokens: int, stop_token_ids: list[int], top_logprobs: int | None, **values: float
):
    message = submit(prompt_ids=prompt_ids, n=n, max_tokens=max_tokens, stop_token_ids=stop_token_ids, sampling=pb.Sampling(**values))
    if top_logprobs is not None:
        message.top_logprobs = top_logprobs
    try:
        request = to_request(message, "1:1", FACTS)
    except RequestRefused:
        return  # that it names the field is the table's business
    assert 1 <= request.n <= FACTS.max_sequences_per_request
    assert all(token_id < FACTS.vocab_size for token_id in [*request.prompt_ids, *request.stop_token_ids])
    assert 0 <= request.sampling.temperature < INF
    assert 0 < request.sampling.top_p <= 1
    assert 0 < request.sampling.repetition_penalty < INF


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None),
        ({"speculation": pb.Speculation()}, None),
        ({"speculation": pb.Speculation(max_draft_tokens=3)}, 3),
        ({"speculation": pb.Speculation(off=True, max_draft_tokens=3)}, 0),
        ({"toggles": pb.FeatureToggles(no_speculation=True)}, 0),
    ],
)
def test_a_request_says_how_much_may_be_guessed_for_it(fields: dict[str, Any], most: int | None):
    assert to_request(submit(**fields), "1:1", FACTS).max_draft_tokens == most


def test_packed_ids_are_the_same_prompt():
    asked, listed = submit(**packed(1, 2, 3)), submit(prompt_ids=[1, 2, 3])
    assert to_request(asked, "1:1", FACTS) == to_request(listed, "1:1", FACTS)
