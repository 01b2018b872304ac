"""Fields of a request body that the schemas do not hold.

Three kinds, in this order:
- harmless: hints and bookkeeping whose absence changes no answer (HARMLESS) are accepted and have no effect;
- asking for what is not done here, or is by another name (REFUSED): accepted with a value that asks for nothing, else 400 naming the field
  and the way out;
- unheard of: 400 when it looks like a misspelling of a known field, since ignoring that would answer another question than was asked;
  otherwise accepted, as OpenAI-compatible servers do, because clients send fields newer than the server.
"""

import difflib
from collections.abc import Container, Iterable, Mapping
from typing import Any

import msgspec

from pagoda_router.errors import BadRequest

HARMLESS = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("prediction", "verbosity", "parallel_tool_calls", "spaces_between_special_tokens", "request_id", "session_id"),
        *("include_reasoning", "stream_interval", "guided_decoding_backend"),
        # of templates, which a completion has none of
        *("reasoning_effort", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    }
)

_TOOLS = "tools belong to /v1/chat/completions: leave it out"
_OLD_TOOLS = "use tools and tool_choice"
_TEXT_ONLY = "only text goes in and comes out: leave it out"
_BEAM = "beam search is not supported: use temperature, top_p and n"
_IDS = "use return_token_ids or logprobs"
_NOT_RETURNED = "that is not returned: leave it out"
_TEMPLATE = "the model's own template is used: leave it out"
_VARIABLE = "it is a variable of some chat templates: send it in chat_template_kwargs"
FORM = "use structured_outputs, or response_format"
_SAMPLER = "this sampler is not supported: use top_p, top_k or min_p"
LENGTH = "use max_tokens"
_SYSTEM = "send it as a message of the role system"
_NOT_KEPT = "nothing is kept between requests: send the earlier messages"

NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
"""Values by which a client says that it does not ask."""

REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    # field: (why and what to do, values that ask for nothing)
    "tools": (_TOOLS, NOTHING),
    "tool_choice": (_TOOLS, (None, "none", "auto")),
    "functions": (_OLD_TOOLS, NOTHING),
    "function_call": (_OLD_TOOLS, (None, "none", "auto")),
    "audio": (_TEXT_ONLY, NOTHING),
    "modalities": (_TEXT_ONLY, (None, ["text"])),
    "web_search_options": ("there is no web search: leave it out", (None,)),
    "suffix": ("text is only continued, not filled in: leave it out", (None, "")),
    "best_of": ("it belongs to /v1/completions: use n", (None, 1)),
    "use_beam_search": (_BEAM, NOTHING),
    "length_penalty": (_BEAM, (None, 1, 1.0)),
    "echo": ("it belongs to /v1/completions: leave it out", (None, False)),
    "logits_processors": ("use logit_bias", NOTHING),
    "truncation_side": ("a prompt is cut at its beginning: leave it out", (None, "left")),
    "chat_template": (_TEMPLATE, (None,)),
    "documents": (_TEMPLATE, NOTHING),
    "prompt_embeds": (_TEXT_ONLY, NOTHING),
    "cache_salt": ("the router keeps the caches of different keys apart by itself: leave it out", (None, "")),
    "kv_transfer_params": ("the router decides where a prompt is computed: leave it out", NOTHING),
    "vllm_xargs": ("extra engine arguments are not supported: leave it out", NOTHING),
    "return_tokens_as_token_ids": (_IDS, NOTHING),
    "logprob_token_ids": (_IDS, NOTHING),
    "thinking_token_budget": (LENGTH, (None,)),
    "guided_whitespace_pattern": ("white space in JSON is the worker's to bound: leave it out", (None,)),
    "watermarking": ("outputs carry no watermark: leave it out", NOTHING),
    "return_prompt_text": (_NOT_RETURNED, NOTHING),
    "return_token_offsets": (_NOT_RETURNED, NOTHING),
    "return_weight_versions": (_NOT_RETURNED, NOTHING),
    "return_mm_kwargs": (_NOT_RETURNED, NOTHING),
    "routed_experts_prompt_start": (_NOT_RETURNED, (None,)),
    "mm_payload": (_TEXT_ONLY, NOTHING),
    "media_io_kwargs": (_TEXT_ONLY, NOTHING),
    "mm_processor_kwargs": (_TEXT_ONLY, NOTHING),
    "ec_transfer_params": (_TEXT_ONLY, NOTHING),
    "repetition_detection": ("use repetition_penalty", NOTHING),
    # What the other endpoints call it; each reads its own names before it looks here.
    "messages": ("/v1/chat/completions takes it; a completion takes prompt", NOTHING),
    "prompt": ("/v1/completions takes it; a chat takes messages", NOTHING),
    "input": ("/v1/responses and /v1/embeddings take it; a chat takes messages, a completion prompt", NOTHING),
    "instructions": (_SYSTEM, NOTHING),
    "max_completion_tokens": (LENGTH, (None,)),
    "max_output_tokens": (LENGTH, (None,)),
    "top_logprobs": ("use logprobs with a number", (None,)),
    "text": ("use response_format", NOTHING),
    "reasoning": ("use reasoning_effort, and include_reasoning", NOTHING),
    "include": ("use logprobs, and top_logprobs in a chat", NOTHING),
    "previous_response_id": (_NOT_KEPT, (None, "")),
    "conversation": (_NOT_KEPT, (None, "")),
    # What other servers call it. Accepted as unheard of, it would change the answer there and not here.
    "max_new_tokens": (LENGTH, (None,)),
    "max_length": (LENGTH, (None,)),
    "num_predict": (LENGTH, (None,)),
    "n_predict": (LENGTH, (None,)),
    "thinking_budget": (LENGTH, (None,)),
    "system": (_SYSTEM, NOTHING),
    "system_prompt": (_SYSTEM, NOTHING),
    "stop_sequences": ("use stop", NOTHING),
    "random_seed": ("use seed", (None,)),
    "repeat_penalty": ("use repetition_penalty", (None, 1, 1.0)),
    "n_probs": ("use logprobs and top_logprobs", (None, 0)),
    "options": ("send what it holds beside messages: temperature, max_tokens, …", NOTHING),
    "min_new_tokens": ("use min_tokens", (None, 0)),
    "do_sample": ("use temperature 0 for the most likely tokens", (None, True)),
    "num_beams": (_BEAM, (None, 1)),
    "typical_p": (_SAMPLER, (None, 1, 1.0)),
    "top_a": (_SAMPLER, (None, 0, 0.0)),
    "mirostat": (_SAMPLER, (None, 0)),
    "tfs_z": (_SAMPLER, (None, 1, 1.0)),
    "xtc_probability": (_SAMPLER, (None, 0, 0.0)),
    "dry_multiplier": (_SAMPLER, (None, 0, 0.0)),
    "enable_thinking": (_VARIABLE, (None,)),
    "thinking": (_VARIABLE, (None,)),
    "regex": (FORM, NOTHING),
    "ebnf": (FORM, NOTHING),
    "grammar": (FORM, NOTHING),
    "json_schema": (FORM, NOTHING),
    "response_schema": (FORM, NOTHING),
    "format": (FORM, NOTHING),
}

MISSPELLING_CUTOFF = 0.85
"""difflib ratio: "temprature" and "max_token" are above it, "top_n" is below."""
LONGEST_NAME = 64


def check_unknown_fields(
    fields: Mapping[str, msgspec.Raw],
    known: Iterable[str],
    *,
    harmless: Container[str] = HARMLESS,
    refused: Mapping[str, tuple[str, tuple[Any, ...]]] = REFUSED,
) -> None:
    """Raises BadRequest naming the first that is not to be had."""
    known = frozenset(known)
    for name, raw in fields.items():
        if name in known or name in harmless:
            continue
        if name in refused:
            why, allowed = refused[name]
            if not _asks_for_nothing(_value(raw), allowed):
                raise BadRequest(f"{name}: {why}", param=name)
        elif (meant := _misspelt(name, known)) is not None:
            raise BadRequest(f"{name} is not a field of this request; did you mean {meant}?", param=name)


def _asks_for_nothing(value: Any, allowed: tuple[Any, ...]) -> bool:
    # False equals 0 in Python, but logprobs 0 is a request and logprobs false is none.
    return any(value == nothing and isinstance(value, bool) == isinstance(nothing, bool) for nothing in allowed)


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # not valid UTF-8, or nested beyond reason
        return object()


def _misspelt(name: str, known: frozenset[str]) -> str | None:
    if len(name) > LONGEST_NAME:
        return None
    plain = name.replace("_", "").replace("-", "").lower()
    for candidate in known:
        if candidate.replace("_", "") == plain:
            return candidate
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=MISSPELLING_CUTOFF)
    return close[0] if close else None
