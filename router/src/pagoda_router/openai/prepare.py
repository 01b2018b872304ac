"""A parsed request → a Job: prompts tokenized, limits checked, generations ready for the dispatcher.

The step between schemas.py (what was sent) and run.py (what happens). Owns the tokenizer and template caches.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagoda_router.chat import ChatTemplates
from pagoda_router.errors import BadRequest
from pagoda_router.generation import Arrival, Catalog, CatalogEntry, Dispatcher, Generation, ModelName, TextAssets
from pagoda_router.openai import checks
from pagoda_router.openai.schemas import ChatMessage, ChatRequest, CommonRequest, CompletionRequest
from pagoda_router.surface import SurfaceSettings
from pagoda_router.tokens import TokenizerCache, TokenText
from pagoda_router.tracing.record import RequestTrace

BYTES_PER_TOKEN = 3
"""Of text whose tokenizer is not known yet; most texts have 3 to 4."""
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may use what the context leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, ready to run: one generation per prompt, n choices each. Choice i of prompt p has index p·n + i."""

    answer_id: str
    created: int
    served_name: str
    generations: list[Generation]
    n: int
    text: TokenText
    rules: checks.TextRules
    echoes: list[str] | None
    """Per prompt, the text that each of its choices begins with."""
    stream: bool
    include_usage: bool
    continuous_usage: bool

    @property
    def wants_logprobs(self) -> bool:
        return self.generations[0].top_logprobs is not None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(generation.prompt_ids) for generation in self.generations)


@dataclass(frozen=True, slots=True)
class _Target:
    """The model that a request names, and how its text is handled."""

    model: ModelName
    assets: TextAssets
    text: TokenText
    variant: str | None
    arrival: Arrival | None

    async def encode(self, prompt: str, *, special: bool, param: str) -> list[int]:
        checks.check_context(self.text.least_tokens(prompt), self.assets, param=param, at_least=True)
        return await self.text.encode(prompt, add_special_tokens=special)

    def shown(self, prompt: str | list[int], request: CompletionRequest) -> str:
        return prompt if isinstance(prompt, str) else self.text.decode(prompt, skip_special_tokens=request.skip_special_tokens is not False)


class Preparer:
    """Holds the tokenizer and template caches of one router."""

    def __init__(self, catalog: Catalog, dispatcher: Dispatcher, settings: SurfaceSettings, clock: Callable[[], float]) -> None:
        """`clock`: the trace's."""
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._settings = settings
        self._clock = clock
        self._tokenizers = TokenizerCache()
        self._templates = ChatTemplates(
            timeout_s=settings.template_timeout_s, max_chars=settings.template_output_factor * settings.max_body_bytes
        )

    async def chat(self, request: ChatRequest, entry: CatalogEntry, trace: RequestTrace, variant: str | None = None) -> Job:
        def guess() -> int:
            self._check_messages(request)
            checks.check_before_waiting(request, 1, self._settings)
            return sum(_guessed_tokens(_content_text(i, message)) for i, message in enumerate(request.messages))

        target = await self._target(request, entry, trace, variant, guess)
        prompt = self._render(request, target.assets)
        # The template has written the special tokens; a second BOS would be one too many.
        ids = await target.encode(prompt, special=request.add_special_tokens is True, param="messages")
        return self._job(request, "chatcmpl-", target, [ids], None, trace)

    async def completion(self, request: CompletionRequest, entry: CatalogEntry, trace: RequestTrace, variant: str | None = None) -> Job:
        def guess() -> int:
            prompts = _prompts(request)
            checks.check_before_waiting(request, len(prompts), self._settings)
            return sum(_guessed_tokens(prompt) if isinstance(prompt, str) else len(prompt) for prompt in prompts)

        target = await self._target(request, entry, trace, variant, guess)
        prompts = _prompts(request)
        checks.choices_of(request, len(prompts), target.assets, self._settings)
        special = request.add_special_tokens is not False
        encoded: list[list[int]] = []
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(await target.encode(prompt, special=special, param="prompt"))
            else:
                checks.check_prompt_ids(prompt, target.assets)
                encoded.append(prompt)
        echoes = [target.shown(prompt, request) for prompt in prompts] if request.echo else None
        return self._job(request, "cmpl-", target, encoded, echoes, trace)

    async def _target(
        self, request: CommonRequest, entry: CatalogEntry, trace: RequestTrace, variant: str | None, guess_tokens: Callable[[], int]
    ) -> _Target:
        """Waits while no worker has described the model, at the cost that is guessed for it; an older request is not overtaken for that."""
        checks.check_stream_options(request)
        if variant is not None and variant not in entry.variants:
            raise BadRequest(f"{request.model} has no variant {variant!r}; it has: {', '.join(entry.variants)}", param="X-Pagoda-Features")
        arrival: Arrival | None = None
        while (assets := self._catalog.text(entry.model, variant)) is None:
            if trace.held_s is None:
                trace.held_s = self._clock()
            held = await self._dispatcher.hold(entry.model, variant, guess_tokens())
            arrival = arrival or held
        return _Target(entry.model, assets, await self._tokenizers.get(assets.tokenizer_file), variant, arrival)

    def _check_messages(self, request: ChatRequest) -> None:
        if not request.messages:
            raise BadRequest("messages is empty: send at least one", param="messages")
        if len(request.messages) > self._settings.max_messages:
            raise BadRequest(f"messages has {len(request.messages)} entries: send at most {self._settings.max_messages}", param="messages")

    def _render(self, request: ChatRequest, assets: TextAssets) -> str:
        self._check_messages(request)
        template = assets.chat_template
        if template is None:
            raise BadRequest(f"{request.model} has no chat template: send plain text to /v1/completions", param="model")
        continues = bool(request.continue_final_message)
        if continues and request.add_generation_prompt:
            raise BadRequest(
                "continue_final_message and add_generation_prompt exclude each other: send one", param="continue_final_message"
            )
        variables = dict(request.chat_template_kwargs or {})
        if request.reasoning_effort is not None:
            variables["reasoning_effort"] = request.reasoning_effort
        knows_developer = "developer" in template
        return self._templates.render(
            template,
            [_template_message(i, message, knows_developer) for i, message in enumerate(request.messages)],
            special_tokens=assets.special_tokens,
            variables=variables,
            add_generation_prompt=request.add_generation_prompt is not False and not continues,
            continue_final_message=continues,
        )

    def _job(
        self,
        request: ChatRequest | CompletionRequest,
        id_prefix: str,
        target: _Target,
        prompts: list[list[int]],
        echoes: list[str] | None,
        trace: RequestTrace,
    ) -> Job:
        assets = target.assets
        is_chat = isinstance(request, ChatRequest)
        n = checks.choices_of(request, len(prompts), assets, self._settings)
        sampling = checks.sampling_of(request, assets)
        rules = checks.text_rules_of(request, self._settings)
        stop_token_ids = checks.stop_token_ids_of(request, assets, self._settings)
        top_logprobs = checks.top_logprobs_of(request, assets)
        answer_id = id_prefix + os.urandom(12).hex()
        generations: list[Generation] = []
        for position, ids in enumerate(prompts):
            if not ids:
                param = "messages" if is_chat else "prompt"
                raise BadRequest("the prompt is empty: send at least one token", param=param)
            max_tokens, explicit = checks.max_tokens_of(request, len(ids), assets, default=None if is_chat else COMPLETION_MAX_TOKENS)
            generations.append(
                Generation(
                    request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{position}",
                    model=target.model,
                    prompt_ids=ids,
                    max_tokens=max_tokens,
                    explicit_max_tokens=explicit,
                    n=n,
                    sampling=sampling,
                    min_tokens=rules.min_tokens,
                    stop_token_ids=stop_token_ids,
                    ignore_eos=bool(request.ignore_eos),
                    top_logprobs=top_logprobs,
                    traceparent=trace.context.traceparent,
                    tracestate=trace.context.tracestate,
                    variant=target.variant,
                    arrival=target.arrival,
                )
            )
        trace.answer_id, trace.choices = answer_id, n * len(prompts)
        trace.max_tokens = generations[0].max_tokens if generations[0].explicit_max_tokens else None
        trace.generations = [generation.trace for generation in generations]
        options = request.stream_options
        return Job(
            answer_id=answer_id,
            created=int(time.time()),
            served_name=request.model,
            generations=generations,
            n=n,
            text=target.text,
            rules=rules,
            echoes=echoes,
            stream=bool(request.stream),
            include_usage=options is not None and bool(options.include_usage),
            continuous_usage=options is not None and bool(options.include_usage) and bool(options.continuous_usage_stats),
        )


def _template_message(position: int, message: ChatMessage, knows_developer: bool) -> dict[str, Any]:
    """What templates read. Text parts are joined with newlines; developer is the newer name of system."""
    shown: dict[str, Any] = {"role": message.role, "content": _content_text(position, message)}
    if message.role == "developer" and not knows_developer:
        shown["role"] = "system"
    for name in ("name", "tool_calls", "tool_call_id"):
        value = getattr(message, name)
        if value is not None:
            shown[name] = value
    return shown


def _content_text(position: int, message: ChatMessage) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant" and message.tool_calls:
            return ""
        raise BadRequest(
            f"messages[{position}].content is missing: send a string or a list of text parts", param=f"messages[{position}].content"
        )
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        if part.type != "text" or part.text is None:
            raise BadRequest(
                f"messages[{position}] holds a part of type {part.type[:40]!r}: this model takes text parts only", param="messages"
            )
        texts.append(part.text)
    return "\n".join(texts)


def _guessed_tokens(text: str) -> int:
    return len(text.encode(errors="surrogatepass")) // BYTES_PER_TOKEN + 1


def _prompts(request: CompletionRequest) -> list[str | list[int]]:
    """One string, several, one list of ids, or several: OpenAI's four forms."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise BadRequest("prompt is empty: send text or token ids", param="prompt")
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [ids]
    several = [item for item in prompt if not isinstance(item, int)]
    if len(several) != len(prompt) or len({type(item) for item in several}) != 1:
        raise BadRequest("prompt mixes texts and token ids: send a string, strings, token ids, or lists of token ids", param="prompt")
    return several
