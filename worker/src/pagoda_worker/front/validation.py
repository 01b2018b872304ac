"""From the wire's Submit to the engine's Request. Pure; called by the switchboard for every submit.

Whatever a network can send is judged here, before the engine: a field that is wrong is RequestRefused with its name, one that the engine
does not have yet NotImplementedYet. Nothing is silently ignored or repaired.
"""

import re
import sys
from array import array
from collections.abc import Iterable

from google.protobuf.unknown_fields import UnknownFieldSet

from pagoda_worker.errors import ContextTooLong, NotImplementedYet, RequestRefused
from pagoda_worker.facts import ModelFacts
from pagoda_worker.front.outputs import allowed_token_ids, bad_words, check_embedding, structured_output
from pagoda_worker.request import Request, Sampling
from pagoda_worker.wire import worker_pb2 as pb

MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
MAX_STOP_TOKENS = 128
MAX_SALT_BYTES = 256
MAX_PENALTY = 2.0
MAX_FACTOR = 100.0
"""Of temperature and repetition penalty: beyond it the choice is uniform."""
MICROSECONDS = 1e-6
BYTES_PER_ID = 4
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
"""W3C Trace Context, version 00; all zeros name nothing."""


def to_request(submit: pb.Submit, engine_id: str, facts: ModelFacts) -> Request:
    """Raises RequestRefused, ContextTooLong or NotImplementedYet."""
    _refuse_reserved(submit)
    check_embedding(submit)
    n = submit.n or 1
    _at_most(n, facts.max_sequences_per_request, "n", "sequences")
    prompt_ids = _prompt_ids(submit)
    _check_lengths(submit, len(prompt_ids), n, facts)
    if len(submit.stop_token_ids) > MAX_STOP_TOKENS:
        raise RequestRefused(
            f"{len(submit.stop_token_ids)} stop ids were given; at most {MAX_STOP_TOKENS} are taken", param="stop_token_ids"
        )
    for ids, param in ((prompt_ids, "prompt_ids"), (submit.resume_ids, "resume_ids"), (submit.stop_token_ids, "stop_token_ids")):
        _check_ids(ids, facts.vocab_size, param)
    if submit.HasField("top_logprobs"):
        _at_most(submit.top_logprobs, facts.max_top_logprobs, "top_logprobs", "logprobs")
    if submit.HasField("prompt_logprobs"):
        _at_most(submit.prompt_logprobs, facts.max_top_logprobs, "prompt_logprobs", "logprobs")
    if len(submit.cache_salt) > MAX_SALT_BYTES:
        raise RequestRefused(f"the salt has {len(submit.cache_salt)} bytes; at most {MAX_SALT_BYTES} are taken", param="cache_salt")
    return Request(
        request_id=engine_id,
        prompt_ids=prompt_ids,
        sampling=_sampling(submit.sampling, facts.vocab_size) if submit.HasField("sampling") else Sampling(),
        n=n,
        max_tokens=1 if submit.embedding else submit.max_tokens,
        min_tokens=0 if submit.embedding else submit.min_tokens,
        stop_token_ids=list(submit.stop_token_ids),
        ignore_eos=submit.ignore_eos,
        top_logprobs=submit.top_logprobs if submit.HasField("top_logprobs") else None,
        cache_salt=submit.cache_salt,
        use_prefix_cache=not submit.toggles.no_prefix_cache,
        priority=submit.priority,
        deadline_s=submit.deadline_us * MICROSECONDS if submit.HasField("deadline_us") else None,
        resume_ids=list(submit.resume_ids),
        adapter=submit.adapter,
        want_timings=submit.trace.want_timings,
        structured=structured_output(submit, facts),
        prompt_logprobs=submit.prompt_logprobs if submit.HasField("prompt_logprobs") else None,
        embedding=submit.embedding,
        runs_alone=submit.toggles.no_batching,
        max_draft_tokens=0 if submit.toggles.no_speculation or submit.speculation.off else submit.speculation.max_draft_tokens or None,
    )


def trace_id(trace: pb.TraceContext) -> str:
    """32 hex digits, or nothing when there is no trace or its parent is not of W3C's form."""
    match = TRACEPARENT.fullmatch(trace.traceparent)
    return match[1] if match else ""


def _refuse_reserved(submit: pb.Submit) -> None:
    if submit.toggles.no_batching and submit.n > 1:
        raise RequestRefused(f"{submit.n} sequences cannot run alone: ask for n = 1, or leave no_batching out", param="toggles.no_batching")
    if len(UnknownFieldSet(submit)) > 0:
        number = UnknownFieldSet(submit)[0].field_number
        raise NotImplementedYet(
            f"Submit has a field number {number} that this worker does not know: it speaks an older protocol", param=f"#{number}"
        )


def _prompt_ids(submit: pb.Submit) -> list[int]:
    packed = submit.packed_prompt_ids
    if not packed:
        return list(submit.prompt_ids)
    if submit.prompt_ids:
        raise RequestRefused("the prompt is there twice, as a list and packed: send one", param="packed_prompt_ids")
    if len(packed) % BYTES_PER_ID:
        raise RequestRefused(f"{len(packed)} bytes are no ids of {BYTES_PER_ID} bytes each", param="packed_prompt_ids")
    ids = array("I", packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()


def _check_lengths(submit: pb.Submit, prompt: int, n: int, facts: ModelFacts) -> None:
    resumed = len(submit.resume_ids)
    if prompt == 0:
        raise RequestRefused("the prompt is empty: send at least one token", param="prompt_ids")
    if submit.max_tokens < 1 and not submit.embedding:
        raise RequestRefused("max_tokens is 0: ask for at least one output token", param="max_tokens")
    if submit.min_tokens > submit.max_tokens and not submit.embedding:
        raise RequestRefused(f"min_tokens is {submit.min_tokens} and max_tokens {submit.max_tokens}: lower min_tokens", param="min_tokens")
    if resumed and n > 1:
        raise RequestRefused(f"{n} sequences cannot resume one output: ask for n = 1", param="resume_ids")
    if resumed >= submit.max_tokens and not submit.embedding:
        raise RequestRefused(
            f"{resumed} tokens are resumed and max_tokens is {submit.max_tokens}: nothing is left to compute", param="resume_ids"
        )
    if prompt + resumed >= facts.max_model_len:
        what = f"the prompt has {prompt} tokens" + (f" and {resumed} are resumed" if resumed else "")
        raise ContextTooLong(
            f"{what}; the model takes {facts.max_model_len}, prompt and output together: shorten the prompt", param="prompt_ids"
        )


def _sampling(asked: pb.Sampling, vocab_size: int) -> Sampling:
    _within(asked.temperature, 0.0, MAX_FACTOR, "temperature")
    if asked.top_p == 0.0:
        raise RequestRefused("sampling.top_p is 0; it must be above 0 and at most 1 (1: off)", param="sampling.top_p")
    _within(asked.top_p, 0.0, 1.0, "top_p")
    _within(asked.min_p, 0.0, 1.0, "min_p")
    _within(asked.frequency_penalty, -MAX_PENALTY, MAX_PENALTY, "frequency_penalty")
    _within(asked.presence_penalty, -MAX_PENALTY, MAX_PENALTY, "presence_penalty")
    _within(asked.repetition_penalty, 0.0, MAX_FACTOR, "repetition_penalty")
    words = bad_words(asked)
    _check_ids(asked.allowed_token_ids, vocab_size, "sampling.allowed_token_ids")
    _check_ids((token for word in words for token in word), vocab_size, "sampling.bad_words")
    return Sampling(
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=min(asked.top_k, vocab_size),
        min_p=asked.min_p,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        repetition_penalty=asked.repetition_penalty or 1.0,
        seed=asked.seed if asked.HasField("seed") else None,
        logit_bias=_logit_bias(asked, vocab_size),
        allowed_token_ids=allowed_token_ids(asked, vocab_size),
        bad_words=words,
    )


def _logit_bias(asked: pb.Sampling, vocab_size: int) -> dict[int, float]:
    param = "sampling.logit_bias"
    if len(asked.logit_bias) > MAX_LOGIT_BIASES:
        raise RequestRefused(f"{len(asked.logit_bias)} logit biases were given; at most {MAX_LOGIT_BIASES} are taken", param=param)
    biases = {entry.token_id: entry.bias for entry in asked.logit_bias}
    _check_ids(biases, vocab_size, param)
    for token_id, bias in biases.items():
        if not abs(bias) <= MAX_LOGIT_BIAS:
            raise RequestRefused(f"the bias of token {token_id} is {bias:g}; it must be from -100 to 100", param=param)
    return biases


def _check_ids(ids: Iterable[int], vocab_size: int, param: str) -> None:
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise RequestRefused(
            f"{param} holds token {largest}; the model's vocabulary has {vocab_size}, so ids end at {vocab_size - 1}", param=param
        )


def _at_most(asked: int, limit: int, param: str, what: str) -> None:
    if asked > limit:
        raise RequestRefused(f"{asked} {what} were asked for in {param}; the limit is {limit}", param=param)


def _within(value: float, lowest: float, highest: float, name: str) -> None:
    """NaN fails every comparison."""
    if not lowest <= value <= highest:
        raise RequestRefused(f"sampling.{name} is {value:g}; it must be a number from {lowest:g} to {highest:g}", param=f"sampling.{name}")
