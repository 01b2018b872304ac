"""Structured output on the shipped tiny model with its own tokenizer: what comes out is what was asked for, whatever else happens."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import structured_cost
from engine_runs import Outcome, run_all, run_with_rejections
from front_support import TINY
from tokenizers import Tokenizer

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import NotImplementedYet
from pagoda_worker.request import Request, Sampling, StructuredOutput

TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
EOS = 1
PROMPT = TOKENIZER.encode("Tell me of a person.").ids
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z]{1,6}@[a-z]{1,6}\\.(com|org)$"},
        "pets": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/pet"}},
        "state": {"anyOf": [{"type": "null"}, {"const": "gone"}]},
    },
    "required": ["name", "age", "email", "pets", "state"],
    "additionalProperties": False,
    "$defs": {
        "pet": {
            "type": "object",
            "properties": {"kind": {"enum": ["cat", "dög"]}, "weight": {"type": "number", "minimum": 0, "exclusiveMaximum": 100}},
            "required": ["kind"],
            "additionalProperties": False,
        }
    },
}
AS_PERSON = StructuredOutput(kind="json_schema", text=json.dumps(PERSON))


def tiny_engine(**settings: Any) -> Engine:
    return Engine(EngineConfig(model_dir=TINY, device="cpu", threads=1, **{"max_running": 32, **settings}))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


def ask(request_id: str, structured: StructuredOutput | None = AS_PERSON, *, seed: int | None = None, **fields: Any) -> Request:
    sampling = fields.pop("sampling", Sampling(temperature=1.0, seed=seed) if seed is not None else Sampling())
    given: dict[str, Any] = {"max_tokens": 300, "prompt_ids": PROMPT, **fields}
    return Request(request_id=request_id, sampling=sampling, structured=structured, **given)


def text(outcome: Outcome) -> str:
    return str(TOKENIZER.decode(outcome.tokens, skip_special_tokens=False))


def test_fifty_seeds_give_fifty_valid_documents_beside_plain_requests(engine: Engine):
    asked = [ask(f"seed {seed}", seed=seed) for seed in range(50)]
    outcomes = run_all(engine, *asked, ask("plain", None, max_tokens=40), ask("greedy"))
    for key, outcome in outcomes.items():
        if key[0] != "plain":
            assert outcome.reason == "STOP"
            jsonschema.validate(json.loads(text(outcome)), PERSON)
    assert len({tuple(outcome.tokens) for outcome in outcomes.values()}) > 40, "the seeds still choose"
    alone = run_all(engine, ask("plain", None, max_tokens=40))
    assert alone["plain", 0].tokens == outcomes["plain", 0].tokens


KINDS: list[tuple[StructuredOutput, str]] = [
    (StructuredOutput(kind="regex", text=r"[A-F]{2}-\d{3}(é|ß)"), r"[A-F]{2}-\d{3}(é|ß)"),
    (StructuredOutput(kind="choice", choices=('say "hi"', "back\\slash", "n\new")), r'say "hi"|back\\slash|n\new'),
    (StructuredOutput(kind="grammar", text='start: "<" inner ">"\ninner: /[a-c]{1,3}/ | "(" inner ")"'), r"<\(*[a-c]{1,3}\)*>"),
    (StructuredOutput(kind="grammar", text='root ::= "yes" | "no" num\nnum ::= [0-9] [0-9]'), r"yes|no\d\d"),
]


@pytest.mark.parametrize(("structured", "pattern"), KINDS, ids=["regex", "choice", "lark", "gbnf"])
def test_each_kind_is_matched_to_its_end(engine: Engine, structured: StructuredOutput, pattern: str):
    outcomes = run_all(engine, *(ask(f"seed {seed}", structured, seed=seed, max_tokens=60) for seed in range(5)))
    for outcome in outcomes.values():
        assert outcome.reason in ("STOP", "LENGTH"), "a grammar may nest without end"
        assert outcome.reason == "LENGTH" or re.fullmatch(pattern, text(outcome)), text(outcome)
    assert any(outcome.reason == "STOP" for outcome in outcomes.values())


def test_a_json_object_is_any_object(engine: Engine):
    schema = StructuredOutput(kind="json_object")
    outcomes = run_all(engine, *(ask(f"seed {seed}", schema, seed=seed, max_tokens=400) for seed in range(5)))
    done = [text(outcome) for outcome in outcomes.values() if outcome.reason == "STOP"]
    assert done
    assert all(isinstance(json.loads(each), dict) for each in done)


WRONG: list[tuple[StructuredOutput, str, str]] = [
    (StructuredOutput(kind="regex", text="[a"), "structured.regex", "unclosed character class"),
    (StructuredOutput(kind="regex", text="(?=x)x"), "structured.regex", "look-ahead"),
    (StructuredOutput(kind="grammar", text="start: nowhere"), "structured.grammar", 'unknown name: "nowhere"'),
    (StructuredOutput(kind="json_schema", text='{"type": "strin"}'), "structured.json_schema", "strin"),
    (StructuredOutput(kind="json_schema", text='{"not": {"type": "null"}}'), "structured.json_schema", 'Unimplemented keys: ["not"]'),
    (StructuredOutput(kind="json_schema", text="[1]"), "structured.json_schema", "a JSON schema is an object"),
    (
        StructuredOutput(kind="json_schema", text='{"type":"object","properties":{"a":false},"required":["a"]}'),
        "structured.json_schema",
        "",
    ),
    (StructuredOutput(kind="json_schema", text='{"a":' * 2000 + "1" + "}" * 2000), "structured.json_schema", ""),
]


@pytest.mark.parametrize(("structured", "param", "words"), WRONG, ids=[f"{each[0].kind} {i}" for i, each in enumerate(WRONG)])
def test_what_cannot_be_enforced_is_rejected_by_field(engine: Engine, structured: StructuredOutput, param: str, words: str):
    outcomes, rejections = run_with_rejections(engine, ask("wrong", structured, n=2), ask("plain", None, max_tokens=5, ignore_eos=True))
    assert outcomes["plain", 0].reason == "LENGTH"
    assert ("wrong", 0) not in outcomes
    assert (rejections["wrong"].error, rejections["wrong"].param) == ("RequestRefused", param)
    assert f"{param} cannot be enforced: " in rejections["wrong"].message
    assert words in rejections["wrong"].message


def test_n_sequences_have_a_matcher_each(engine: Engine):
    outcomes = run_all(engine, ask("n", n=4, seed=7))
    alone = [run_all(engine, ask("n", seed=7 + i))["n", 0].tokens for i in range(4)]
    assert [outcomes["n", i].tokens for i in range(4)] == alone
    for outcome in outcomes.values():
        jsonschema.validate(json.loads(text(outcome)), PERSON)


def test_preempted_sequences_say_the_same():
    """Batch-invariant: what is computed again is a prompt, whose sums else come in another order than a decode step's."""
    asked = [ask(f"seed {seed}", seed=seed, prompt_ids=[*PROMPT, seed + 50], max_tokens=120) for seed in range(6)]
    expected = {key: outcome.tokens for key, outcome in run_all(tiny_engine(batch_invariant=True), *asked).items()}
    # 12 blocks of 16 tokens; a block of the tiny model in bf16 takes 5 layers x 2 x 2 heads x 64 x 2 bytes x 16.
    small = tiny_engine(batch_invariant=True, kv_cache_bytes=12 * 5 * 2 * 2 * 64 * 2 * 16, max_model_len=192)
    outcomes = run_all(small, *asked)
    assert small.idle_state().preemptions_total > 0
    assert {key: outcome.tokens for key, outcome in outcomes.items()} == expected


def test_a_resumed_output_goes_on_where_it_was(engine: Engine):
    whole = run_all(engine, ask("a", seed=3))["a", 0].tokens
    for cut in (1, len(whole) // 2, len(whole) - 1):
        resumed = run_all(engine, ask("a", seed=3, resume_ids=whole[:cut]))["a", 0]
        assert (resumed.tokens, resumed.reason) == (whole[cut:], "STOP")
    complete = run_all(engine, ask("a", seed=3, resume_ids=whole))["a", 0]
    assert (complete.tokens, complete.reason) == ([], "STOP")
    assert complete.finish is not None
    assert complete.finish.usage.completion_tokens == len(whole)


@pytest.mark.parametrize("tail", [[], [40]], ids=["at once", "later"])
def test_a_resumed_output_that_breaks_the_grammar_is_rejected(engine: Engine, tail: list[int]):
    (brace,) = TOKENIZER.encode("!").ids
    _, rejections = run_with_rejections(engine, ask("a", resume_ids=[brace, *tail]))
    assert rejections["a"].param == "resume_ids"


def test_a_prompt_from_the_prefix_cache_changes_nothing(engine: Engine):
    prompt = [*PROMPT, *[77] * 64]
    first = run_all(engine, ask("a", seed=5, prompt_ids=prompt))["a", 0]
    second = run_all(engine, ask("a", seed=5, prompt_ids=prompt))["a", 0]
    assert second.finish is not None
    assert second.finish.usage.cached_tokens >= 64
    assert second.tokens == first.tokens


# ---------------------------------------------------------------- ends


def test_eos_waits_until_the_grammar_accepts(engine: Engine):
    wants_to_end = Sampling(logit_bias={EOS: 100.0})
    structured = StructuredOutput(kind="regex", text="[ab]{3,9}")
    outcome = run_all(engine, ask("a", structured, sampling=wants_to_end))["a", 0]
    assert (len(text(outcome)), outcome.reason) == (3, "STOP")
    assert outcome.finish is not None
    assert outcome.finish.stop_token_id == EOS


def test_a_finished_grammar_ends_the_sequence_without_another_step(engine: Engine):
    structured = StructuredOutput(kind="choice", choices=("red", "blue"))
    outcome = run_all(engine, ask("a", structured))["a", 0]
    assert text(outcome) in ("red", "blue")
    assert outcome.finish is not None
    assert (outcome.reason, outcome.finish.usage.completion_tokens) == ("STOP", len(outcome.tokens))


@pytest.mark.parametrize(
    "fields", [{"min_tokens": 6}, {"ignore_eos": True, "max_tokens": 6}, {"ignore_eos": True, "min_tokens": 6, "max_tokens": 6}], ids=str
)
def test_an_end_is_held_back_while_something_else_is_possible(engine: Engine, fields: dict[str, Any]):
    structured = StructuredOutput(kind="regex", text="(a|b)+")
    sampling = Sampling(logit_bias={EOS: 100.0, TOKENIZER.token_to_id("a"): 50.0})
    outcome = run_all(engine, ask("a", structured, sampling=sampling, **fields))["a", 0]
    assert len(outcome.tokens) == 6


def test_min_tokens_cannot_stretch_a_complete_text(engine: Engine):
    structured = StructuredOutput(kind="choice", choices=("red", "blue"))
    outcome = run_all(engine, ask("a", structured, min_tokens=50))["a", 0]
    assert (text(outcome) in ("red", "blue"), outcome.reason) == (True, "STOP")


def test_a_stop_id_ends_what_the_grammar_accepts_and_nothing_before(engine: Engine):
    stop = TOKENIZER.token_to_id("<|system|>")
    sampling = Sampling(logit_bias={stop: 100.0})
    outcome = run_all(engine, ask("a", StructuredOutput(kind="regex", text="[ab]{3,9}"), sampling=sampling, stop_token_ids=[stop]))["a", 0]
    assert (len(text(outcome)), outcome.reason) == (3, "STOP")
    assert outcome.finish is not None
    assert outcome.finish.stop_token_id == stop


def test_a_bias_towards_what_is_forbidden_is_in_vain(engine: Engine):
    token = TOKENIZER.token_to_id("x")
    sampling = Sampling(temperature=1.0, seed=1, logit_bias={token: 100.0}, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.3)
    outcome = run_all(engine, ask("a", sampling=sampling))["a", 0]
    jsonschema.validate(json.loads(text(outcome)), PERSON)


def test_a_grammar_and_ids_that_exclude_each_other_end_with_a_sentence(engine: Engine):
    structured = StructuredOutput(kind="choice", choices=("red", "blue"))
    sampling = Sampling(allowed_token_ids=[TOKENIZER.token_to_id("x")])
    outcomes = run_all(engine, ask("a", structured, sampling=sampling), ask("plain", None, max_tokens=4, ignore_eos=True))
    finish = outcomes["a", 0].finish
    assert finish is not None
    assert finish.reason.name == "ENGINE_ERROR"
    assert "leave no token" in finish.detail
    assert outcomes["plain", 0].reason == "LENGTH"


def test_a_tokenizer_that_cannot_be_compiled_against_costs_the_feature_only(tmp_path: Path):
    """llguidance's trie has no room for tokens of several hundred bytes; it panics, in a thread of ours."""
    folder = shutil.copytree(TINY, tmp_path / "model")
    lengths = [1 << power for power in range(11)]
    merges = [["a" * length, "a" * length] for length in lengths[:-1]]
    model = {"type": "BPE", "vocab": {"a" * length: i for i, length in enumerate(lengths)}, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    engine = Engine(EngineConfig(model_dir=folder, device="cpu", threads=1, max_running=2))
    assert not engine.facts.structured_output
    with pytest.raises(NotImplementedYet):
        engine.submit(ask("a"))
    assert run_all(engine, ask("plain", None, max_tokens=3, ignore_eos=True))["plain", 0].reason == "LENGTH"


def test_hard_schemas_are_enforced_or_refused_and_never_enforced_wrongly():
    library = structured_cost.Guidance(TINY, 1024, EOS)
    verdicts = dict(structured_cost.verdicts(library, TOKENIZER))
    assert set(verdicts.values()) == {"right", "refused"}
    assert sorted(name for name, verdict in verdicts.items() if verdict == "refused") == [
        "if then else",
        "not",
        "oneOf that overlaps",
        "uniqueItems",
    ]
