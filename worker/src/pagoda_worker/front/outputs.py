"""What a Submit asks beside plain tokens, and how the answers read on the wire: structured output, allowed and bad token ids, prompt
logprobs, embeddings. Pure; called by validation and session.

Whether a schema, regular expression or grammar can be enforced is the engine's to say: it compiles them. Here sizes are bounded.
"""

import json
from collections.abc import Iterable, Mapping

from pagoda_worker.errors import NotImplementedYet, RequestRefused
from pagoda_worker.facts import AdaptersState, ModelFacts
from pagoda_worker.request import PromptLogprobs, StructuredOutput
from pagoda_worker.wire import worker_pb2 as pb

MAX_GRAMMAR_BYTES = 256 << 10
MAX_CHOICES = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_TOKENS = 64
FEATURES = (
    pb.FEATURE_CACHE_EVENTS,
    pb.FEATURE_PREFIX_CACHE_TOGGLE,
    pb.FEATURE_BATCHING_TOGGLE,
    pb.FEATURE_SLEEP,
    pb.FEATURE_PROMPT_LOGPROBS,
    pb.FEATURE_EMBEDDINGS,
)
"""Of every model."""


def features_of(facts: ModelFacts) -> list["pb.Feature.ValueType"]:
    optional = {pb.FEATURE_STRUCTURED_OUTPUT: facts.structured_output, pb.FEATURE_SPECULATION: facts.speculative != "none"}
    optional[pb.FEATURE_VERIFY] = facts.speculative == "remote"
    optional[pb.FEATURE_ADAPTERS] = facts.adapter_slots > 0
    return [*FEATURES, *(feature for feature, there in optional.items() if there)]


def adapters_message(state: AdaptersState, sources: Mapping[str, str]) -> pb.AdaptersState:
    """`sources`: as they were asked for; the engine knows folders."""
    facts = [
        pb.AdapterFacts(
            name=each.name,
            version=each.version,
            source=sources.get(each.name, each.source),
            rank=each.rank,
            size_bytes=each.size_bytes,
            resident=each.name in state.resident,
        )
        for each in state.loaded
    ]
    return pb.AdaptersState(adapters=facts)


def structured_output(submit: pb.Submit, facts: ModelFacts) -> StructuredOutput | None:
    """Raises RequestRefused, NotImplementedYet."""
    if not submit.HasField("structured"):
        return None
    if not facts.structured_output:
        raise NotImplementedYet(
            "this model's tokenizer.json cannot be compiled against, so no structure can be enforced: leave structured out",
            param="structured",
        )
    asked = submit.structured
    kind = asked.WhichOneof("kind")
    if kind is None or (kind == "json_object" and not asked.json_object):
        raise RequestRefused(
            "structured says nothing: give json_schema, regex, grammar or choices, set json_object, or leave it out", param="structured"
        )
    if kind == "json_object":
        return StructuredOutput(kind="json_object")
    if kind == "choices":
        return StructuredOutput(kind="choice", choices=_choices(asked.choices.choices))
    text = asked.json_schema if kind == "json_schema" else asked.regex if kind == "regex" else asked.grammar
    _check_size(len(text.encode()), f"structured.{kind}")
    if not text.strip():
        raise RequestRefused(f"structured.{kind} is empty", param=f"structured.{kind}")
    if kind == "json_schema":
        _check_schema(text)
    return StructuredOutput(kind=kind, text=text)


def _check_schema(text: str) -> None:
    param = "structured.json_schema"
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"{param} is not JSON: {error}", param=param) from error
    if not isinstance(schema, dict):
        raise RequestRefused(f"{param} must be a JSON object", param=param)


def _choices(asked: Iterable[str]) -> tuple[str, ...]:
    choices, param = tuple(asked), "structured.choices"
    if not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise RequestRefused(f"{param} holds {len(choices)} texts; it must hold 1 to {MAX_CHOICES}, none of them empty", param=param)
    _check_size(sum(len(choice.encode()) for choice in choices), param)
    return choices


def _check_size(size: int, param: str) -> None:
    if size > MAX_GRAMMAR_BYTES:
        raise RequestRefused(f"{param} has {size} bytes; at most {MAX_GRAMMAR_BYTES} are taken", param=param)


def allowed_token_ids(asked: pb.Sampling, vocab_size: int) -> list[int]:
    if len(asked.allowed_token_ids) > vocab_size:
        raise RequestRefused(f"{len(asked.allowed_token_ids)} ids are more than there are", param="sampling.allowed_token_ids")
    return list(asked.allowed_token_ids)


def bad_words(asked: pb.Sampling) -> list[list[int]]:
    param = "sampling.bad_words"
    words = [list(word.ids) for word in asked.bad_words]
    if len(words) > MAX_BAD_WORDS:
        raise RequestRefused(f"{len(words)} bad words were given; at most {MAX_BAD_WORDS} are taken", param=param)
    if any(not 1 <= len(word) <= MAX_BAD_WORD_TOKENS for word in words):
        raise RequestRefused(f"a bad word has no ids, or more than {MAX_BAD_WORD_TOKENS}", param=param)
    return words


def check_embedding(submit: pb.Submit) -> None:
    """What makes no sense beside it is refused. Lengths of the output say nothing and are not looked at."""
    if not submit.embedding:
        return
    senseless = [name for name in ("structured", "prompt_logprobs", "top_logprobs") if submit.HasField(name)]
    senseless += ["n"] * (submit.n > 1) + ["resume_ids"] * (len(submit.resume_ids) > 0)
    if senseless:
        raise RequestRefused(f"an embedding has no output: leave {senseless[0]} out", param=senseless[0])


def prompt_logprobs_message(request_id: int, logprobs: PromptLogprobs) -> pb.PromptLogprobs:
    return pb.PromptLogprobs(request_id=request_id, k=logprobs.k, own=logprobs.own, top_ids=logprobs.top_ids, top=logprobs.top)
