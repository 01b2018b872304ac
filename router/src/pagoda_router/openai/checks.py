"""Ranges and combinations of request fields → what a Generation needs. No I/O; every refusal names its field, the limit and the way out.

prepare.py calls it with what the model allows.
"""

from array import array
from collections.abc import Sequence

from pagoda_router.catalog import TextAssets
from pagoda_router.errors import BadRequest, ContextTooLong
from pagoda_router.generation import Sampling
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.openai.schemas import ChatRequest, CommonRequest, CompletionRequest, EmbeddingRequest
from pagoda_router.openai.structured import structured_of
from pagoda_router.records import record
from pagoda_router.text.tokens import TokenText

TINY_TOP_P = 1e-6
"""OpenAI allows top_p 0; in float32 this keeps exactly the most likely token."""
SEED_MASK = (1 << 62) - 1
"""Workers add the sequence number to a seed and keep it in 64 bits."""
MAX_PRIORITY = 2**31 - 1
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""OpenAI's, and vLLM's. A model knows some of them."""
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 256


_ANYTHING = 2**62
UNDESCRIBED = TextAssets(
    tokenizer_file="",
    chat_template=None,
    special_tokens={},
    eos_token_ids=(),
    bos_token_id=None,
    vocab_size=_ANYTHING,
    max_model_len=_ANYTHING,
    max_sequences_per_request=_ANYTHING,
    max_top_logprobs=_ANYTHING,
)
"""A model that no worker has described yet allows everything: what is still wrong then would be wrong for any model."""

LONGEST = "This model's maximum context length is"
"""OpenAI's and vLLM's words: clients that shorten a conversation or go to a larger model, such as LiteLLM, know the case by them."""


@record(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How a sequence's text is made from its tokens; the router's own business."""

    stops: tuple[str, ...]
    min_tokens: int
    skip_special_tokens: bool
    include_stop: bool
    markers: tuple[str, ...] = ()
    """Special tokens that are shown all the same: what reads the text looks for them."""


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadRequest(f"{name} is {_shown(value)}: use a value from {_shown(low)} to {_shown(high)}", param=name)


def _shown(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)  # :g would round a seed's bound


def sampling_of(request: CommonRequest, assets: TextAssets, bad_words: tuple[tuple[int, ...], ...] = ()) -> Sampling:
    def given(name: str, value: float | None, default: float, low: float, high: float) -> float:
        if value is None:
            return default
        check_range(name, value, low, high)
        return float(value)

    top_k = request.top_k if request.top_k is not None and request.top_k != -1 else 0
    if top_k:
        check_range("top_k", top_k, 0, 2**31 - 1)
    if request.seed is not None:
        check_range("seed", request.seed, -(2**63), 2**64 - 1)
    return Sampling(
        temperature=given("temperature", request.temperature, 1.0, 0.0, 2.0),
        top_p=max(given("top_p", request.top_p, 1.0, 0.0, 1.0), TINY_TOP_P),
        top_k=top_k,
        min_p=given("min_p", request.min_p, 0.0, 0.0, 1.0),
        frequency_penalty=given("frequency_penalty", request.frequency_penalty, 0.0, -2.0, 2.0),
        presence_penalty=given("presence_penalty", request.presence_penalty, 0.0, -2.0, 2.0),
        repetition_penalty=given("repetition_penalty", request.repetition_penalty, 1.0, 0.01, 100.0),
        seed=None if request.seed is None else request.seed & SEED_MASK,
        logit_bias=_logit_bias(request, assets),
        allowed_token_ids=_allowed_token_ids(request, assets),
        bad_words=bad_words,
    )


def _allowed_token_ids(request: CommonRequest, assets: TextAssets) -> tuple[int, ...]:
    if request.allowed_token_ids is None:
        return ()
    if not request.allowed_token_ids:
        raise BadRequest("allowed_token_ids is empty, which allows no answer: leave it out", param="allowed_token_ids")
    for token_id in request.allowed_token_ids:
        _check_token_id("allowed_token_ids", token_id, assets)
    return tuple(dict.fromkeys(request.allowed_token_ids))


def check_bad_words(request: CommonRequest) -> list[str]:
    words = request.bad_words or []
    if len(words) > MAX_BAD_WORDS:
        raise BadRequest(f"bad_words has {len(words)} entries: send at most {MAX_BAD_WORDS}", param="bad_words")
    for word in words:
        if not word.strip():
            raise BadRequest("bad_words holds an empty word: leave it out", param="bad_words")
        if len(word) > MAX_BAD_WORD_CHARS:
            raise BadRequest(f"a bad word has {len(word)} characters: use at most {MAX_BAD_WORD_CHARS}", param="bad_words")
    return words


async def bad_word_ids(request: CommonRequest, text: TokenText) -> tuple[tuple[int, ...], ...]:
    """Each as it begins a text and as it follows a space: what a tokenizer makes of a word depends on that."""
    found: dict[tuple[int, ...], None] = {}
    for word in check_bad_words(request):
        for written in (word.lstrip(), " " + word.lstrip()):
            found[tuple(await text.encode(written, add_special_tokens=False))] = None
    return tuple(ids for ids in found if ids)


def _logit_bias(request: CommonRequest, assets: TextAssets) -> dict[int, float]:
    biases: dict[int, float] = {}
    for key, bias in (request.logit_bias or {}).items():
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        _check_token_id("logit_bias", token_id if token_id >= 0 else key, assets)
        check_range("logit_bias", bias, -100.0, 100.0)
        biases[token_id] = bias
    return biases


def _check_token_id(param: str, token_id: int | str, assets: TextAssets) -> None:
    if isinstance(token_id, str) or not 0 <= token_id < assets.vocab_size:
        shown = token_id if isinstance(token_id, int) else repr(token_id[:20])
        raise BadRequest(f"{param}: {shown} is not a token id of this model, which has {assets.vocab_size} tokens", param=param)


def check_prompt_ids(ids: "Sequence[int]", assets: TextAssets, *, param: str = "prompt") -> None:
    if ids and not ((isinstance(ids, array) or min(ids) >= 0) and max(ids) < assets.vocab_size):
        wrong = next(i for i in ids if not 0 <= i < assets.vocab_size)
        _check_token_id(param, wrong, assets)


def stop_token_ids_of(request: CommonRequest, assets: TextAssets, settings: SurfaceSettings) -> tuple[int, ...]:
    ids = request.stop_token_ids or []
    if len(ids) > 4 * settings.max_stop_strings:
        raise BadRequest(f"stop_token_ids has {len(ids)} ids: send at most {4 * settings.max_stop_strings}", param="stop_token_ids")
    for token_id in ids:
        _check_token_id("stop_token_ids", token_id, assets)
    return tuple(ids)


def text_rules_of(request: CommonRequest, settings: SurfaceSettings, markers: tuple[str, ...] = ()) -> TextRules:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > settings.max_stop_strings:
        raise BadRequest(f"stop has {len(stops)} strings: send at most {settings.max_stop_strings}", param="stop")
    for stop in stops:
        if not stop:
            raise BadRequest("stop holds an empty string, which would stop at once: leave it out", param="stop")
        if len(stop) > settings.max_stop_chars:
            raise BadRequest(f"a stop string has {len(stop)} characters: use at most {settings.max_stop_chars}", param="stop")
    return TextRules(
        stops=tuple(dict.fromkeys(stops)),
        min_tokens=request.min_tokens or 0,
        skip_special_tokens=request.skip_special_tokens is not False,
        include_stop=bool(request.include_stop_str_in_output),
        markers=markers,
    )


def check_before_waiting(request: ChatRequest | CompletionRequest, prompts: int, settings: SurfaceSettings) -> None:
    """What can be said of a request without knowing its model: it must not wait for minutes to hear that."""
    choices_of(request, prompts, UNDESCRIBED, settings)
    sampling_of(request, UNDESCRIBED)
    text_rules_of(request, settings)
    stop_token_ids_of(request, UNDESCRIBED, settings)
    top_logprobs_of(request, UNDESCRIBED)
    prompt_logprobs_of(request, UNDESCRIBED)
    check_bad_words(request)
    priority_of(request.priority)
    structured_of(request)
    check_effort(request)
    max_tokens_of(request, 1, UNDESCRIBED, default=None)


def check_effort(request: CommonRequest) -> None:
    """Templates write any text into the prompt, and what a model makes of a word that it was not trained with nobody knows."""
    effort = request.reasoning_effort if isinstance(request, ChatRequest) else None
    if effort is not None and effort not in EFFORTS:
        known = f"{', '.join(EFFORTS[:-1])} or {EFFORTS[-1]}"
        raise BadRequest(
            f"reasoning_effort is {effort[:40]!r}: use {known}; a word of the template's own goes into chat_template_kwargs",
            param="reasoning_effort",
        )


def choices_of(request: CommonRequest, prompts: int, assets: TextAssets, settings: SurfaceSettings) -> int:
    """n, checked; `prompts` is how many prompts the request brings."""
    n = 1 if request.n is None else request.n
    check_range("n", n, 1, assets.max_sequences_per_request)
    if isinstance(request, CompletionRequest) and request.best_of not in (None, n):
        raise BadRequest(
            f"best_of is {request.best_of} and n is {n}: choosing among more is not supported, leave best_of out", param="best_of"
        )
    if n * prompts > settings.max_choices:
        raise BadRequest(f"{prompts} prompts with n {n} are {n * prompts} choices: ask for at most {settings.max_choices}", param="n")
    return n


def top_logprobs_of(request: ChatRequest | CompletionRequest, assets: TextAssets) -> int | None:
    most = assets.max_top_logprobs
    if isinstance(request, CompletionRequest):
        if request.logprobs is not None:
            check_range("logprobs", request.logprobs, 0, most)
        return request.logprobs
    if request.top_logprobs is not None:
        if not request.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        check_range("top_logprobs", request.top_logprobs, 0, most)
    return (request.top_logprobs or 0) if request.logprobs else None


def prompt_logprobs_of(request: ChatRequest | CompletionRequest, assets: TextAssets) -> int | None:
    """What was asked for by name, or by an echo with logprobs."""
    asked = request.prompt_logprobs
    if asked is not None:
        check_range("prompt_logprobs", asked, 0, assets.max_top_logprobs)
        if request.stream:
            raise BadRequest("prompt_logprobs cannot be streamed: leave out stream or prompt_logprobs", param="prompt_logprobs")
    echoed = request.logprobs if isinstance(request, CompletionRequest) and request.echo else None
    return asked if echoed is None else max(asked or 0, echoed)


def priority_of(asked: int | None) -> int:
    """vLLM's smaller is sooner, ours is larger."""
    if not asked:
        return 0
    check_range("priority", asked, -MAX_PRIORITY, MAX_PRIORITY)
    return -asked


def most_prompt_tokens(request: CommonRequest | EmbeddingRequest, assets: TextAssets) -> int | None:
    """truncate_prompt_tokens; -1 is what leaves room for the output. None: a prompt is never cut."""
    asked = request.truncate_prompt_tokens
    if asked is None:
        return None
    if asked == -1:
        output = request.max_tokens if isinstance(request, CommonRequest) else None
        return max(1, assets.max_model_len - max(1, output or 1))
    check_range("truncate_prompt_tokens", asked, 1, assets.max_model_len)
    return asked


def scores_prompt(request: CommonRequest) -> bool:
    """The answer is the prompt, with its logprobs if those are asked for, and nothing after it."""
    return isinstance(request, CompletionRequest) and bool(request.echo) and request.max_tokens == 0


def check_stream_options(request: CommonRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")


def max_tokens_of(request: CommonRequest, prompt_tokens: int, assets: TextAssets, *, default: int | None) -> tuple[int, bool]:
    """Output tokens that a worker computes per sequence, and whether the client asked for that limit. default None: what the context
    leaves."""
    limit = assets.max_model_len
    chat_limit = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    name, asked = ("max_completion_tokens", chat_limit) if chat_limit is not None else ("max_tokens", request.max_tokens)
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    if asked is not None and asked < 1 and not scores_prompt(request):
        scoring = ", or set echo to true to have the prompt alone" if asked == 0 and isinstance(request, CompletionRequest) else ""
        raise BadRequest(f"{name} is {asked}: ask for at least 1 token{scoring}", param=name)
    check_context(prompt_tokens, assets, param=param)
    if asked is not None and prompt_tokens + asked > limit:
        raise ContextTooLong(
            f"{LONGEST} {limit} tokens; the prompt has {prompt_tokens} and {name} is {asked}, {prompt_tokens + asked} together: "
            f"shorten the prompt, or lower {name} to {limit - prompt_tokens}",
            param=param,
        )
    room = limit - prompt_tokens
    max_tokens = asked if asked is not None else room if default is None else min(default, room)
    if request.min_tokens is not None:
        check_range("min_tokens", request.min_tokens, 0, max_tokens)
    # Workers give a prompt's logprobs with its first token, so one is computed and never shown, as vLLM does it.
    return max(1, max_tokens), asked is not None


def check_context(prompt_tokens: int, assets: TextAssets, *, param: str, at_least: bool = False) -> None:
    if prompt_tokens >= assets.max_model_len:
        count = f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
        raise ContextTooLong(
            f"{LONGEST} {assets.max_model_len} tokens, output included; the prompt has {count}: shorten it",
            param=param,
        )
