"""A parsed request → a Job: prompts tokenized, limits checked, generations ready for the dispatcher.

The step between schemas.py (what was sent) and run.py (what happens). Owns the template cache.
"""

import os
import time
from array import array
from collections.abc import Callable, Sequence

from pagoda_router.abilities import Feature
from pagoda_router.catalog import CatalogEntry
from pagoda_router.errors import BadRequest
from pagoda_router.generation import Generation, Structured
from pagoda_router.http.cohort import next_stage
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.openai import checks
from pagoda_router.openai.call import Call
from pagoda_router.openai.conversation import check_messages, content_text, render, reply_plan, template_of
from pagoda_router.openai.offers import require_switches
from pagoda_router.openai.reply.reader import ReplyPlan
from pagoda_router.openai.schemas import ChatRequest, CommonRequest, CompletionRequest
from pagoda_router.openai.structured import structured_of
from pagoda_router.openai.target import Target, Targets, guessed_tokens, texts_or_ids
from pagoda_router.openai.toolset import check_tools, toolset_of
from pagoda_router.records import record
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.text.chat import ChatTemplates
from pagoda_router.text.tokens import TokenText
from pagoda_router.token_ids import as_array

COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions; a chat may use what the context leaves."""
SALT_BYTES = 16
"""Of a request whose prompt must not be found in a cache, nor be found there later."""


@record(frozen=True, slots=True, kw_only=True)
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
    scores_prompt: bool
    """Each choice ends with its echo."""
    reply: ReplyPlan | None
    """None: the text is content and nothing else."""
    constraint_field: str
    """Of the request, that asks for a form of the answer. Empty: none does."""
    shows_prompt_logprobs: bool
    shows_token_ids: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool

    @property
    def wants_logprobs(self) -> bool:
        return self.generations[0].top_logprobs is not None

    @property
    def prompt_tokens(self) -> int:
        return sum([len(generation.prompt_ids) for generation in self.generations])

    @property
    def echoes_logprobs(self) -> bool:
        """Logprobs begin with the prompt's, as the text does."""
        return self.echoes is not None and self.wants_logprobs


class Preparer:
    """Holds the template cache of one router."""

    def __init__(self, targets: Targets, templates: ChatTemplates, settings: SurfaceSettings) -> None:
        self._targets = targets
        self._templates = templates
        self._settings = settings

    async def chat(self, request: ChatRequest, entry: CatalogEntry, call: Call, *, id_prefix: str = "chatcmpl-") -> Job:
        def guess() -> int:
            check_messages(request.messages, self._settings)
            check_tools(request)
            checks.check_before_waiting(request, 1, self._settings)
            return sum(guessed_tokens(content_text(i, message)) for i, message in enumerate(request.messages))

        target = await self._target(request, entry, call, guess)
        check_messages(request.messages, self._settings)
        toolset = toolset_of(request, template_of(request.model, target.assets))
        constraint, field = _constraint(request, target)
        if toolset is not None and toolset.forced is not None:
            if constraint is not None:
                raise BadRequest("tool_choice asks for a call, and another field for a form of the answer: send one", param="tool_choice")
            target.require(Feature.STRUCTURED_OUTPUT, "tool_choice", "cannot be made to call a tool: use auto or none")
            constraint, field = toolset.forced, "tools"
        prompt = render(self._templates, request, target.assets, toolset)
        # The template has written the special tokens; a second BOS would be one too many.
        most = checks.most_prompt_tokens(request, target.assets)
        if call.member.in_company:
            await next_stage()
        ids = await target.encode(prompt, special=request.add_special_tokens is True, param="messages", most=most)
        if call.member.in_company:
            await next_stage()
        plan = reply_plan(request, target.assets, toolset, prompt, is_constrained=constraint is not None)
        return await self._job(request, id_prefix, target, [ids], call, constraint=(constraint, field), reply=plan)

    async def completion(self, request: CompletionRequest, entry: CatalogEntry, call: Call) -> Job:
        def guess() -> int:
            prompts = texts_or_ids(request.prompt, "prompt")
            checks.check_before_waiting(request, len(prompts), self._settings)
            return sum(guessed_tokens(prompt) if isinstance(prompt, str) else len(prompt) for prompt in prompts)

        target = await self._target(request, entry, call, guess)
        prompts = texts_or_ids(request.prompt, "prompt")
        checks.choices_of(request, len(prompts), target.assets, self._settings)
        special, most = request.add_special_tokens is not False, checks.most_prompt_tokens(request, target.assets)
        encoded: list[Sequence[int]] = []
        for prompt in prompts:
            if isinstance(prompt, str):
                encoded.append(await target.encode(prompt, special=special, param="prompt", most=most))
            else:
                checks.check_prompt_ids(prompt, target.assets)
                ids = prompt if most is None else prompt[-most:]
                encoded.append(ids if isinstance(ids, array) else as_array(ids))
        echoes = None
        if request.echo:
            shown = [prompt if isinstance(prompt, str) and most is None else ids for prompt, ids in zip(prompts, encoded, strict=True)]
            echoes = [echo if isinstance(echo, str) else self._decoded(request, target, echo) for echo in shown]
        return await self._job(request, "cmpl-", target, encoded, call, constraint=_constraint(request, target), echoes=echoes)

    def _decoded(self, request: CompletionRequest, target: Target, ids: Sequence[int]) -> str:
        return target.text.decode(ids, skip_special_tokens=request.skip_special_tokens is not False)

    async def _target(self, request: CommonRequest, entry: CatalogEntry, call: Call, guess_tokens: Callable[[], int]) -> Target:
        checks.check_stream_options(request)
        return await self._targets.wait_for(entry, call.trace, call.variant, guess_tokens, call.sender, call.member)

    async def _job(
        self,
        request: ChatRequest | CompletionRequest,
        id_prefix: str,
        target: Target,
        prompts: Sequence[Sequence[int]],
        call: Call,
        *,
        constraint: tuple[Structured | None, str],
        echoes: list[str] | None = None,
        reply: ReplyPlan | None = None,
    ) -> Job:
        n = checks.choices_of(request, len(prompts), target.assets, self._settings)
        require_switches(call.wishes, OWN_BACKEND, n, target.assets)
        rules = checks.text_rules_of(request, self._settings, () if reply is None else reply.markers)
        answer_id = id_prefix + os.urandom(12).hex()
        structured, constraint_field = constraint
        trace = call.trace
        generations = await self._generations(request, target, prompts, call, answer_id=answer_id, n=n, structured=structured)
        trace.answer_id, trace.choices = answer_id, n * len(prompts)
        scores = checks.scores_prompt(request)
        trace.max_tokens = 0 if scores else generations[0].max_tokens if generations[0].explicit_max_tokens else None
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
            scores_prompt=scores,
            reply=reply,
            constraint_field=constraint_field,
            shows_prompt_logprobs=request.prompt_logprobs is not None,
            shows_token_ids=bool(request.return_token_ids),
            stream=bool(request.stream),
            include_usage=options is not None and bool(options.include_usage),
            continuous_usage=options is not None and bool(options.include_usage) and bool(options.continuous_usage_stats),
        )

    async def _generations(
        self,
        request: ChatRequest | CompletionRequest,
        target: Target,
        prompts: Sequence[Sequence[int]],
        call: Call,
        *,
        answer_id: str,
        n: int,
        structured: Structured | None,
    ) -> list[Generation]:
        assets = target.assets
        is_chat = isinstance(request, ChatRequest)
        sampling = checks.sampling_of(request, assets, await checks.bad_word_ids(request, target.text))
        stop_token_ids = checks.stop_token_ids_of(request, assets, self._settings)
        top_logprobs = checks.top_logprobs_of(request, assets)
        prompt_logprobs = checks.prompt_logprobs_of(request, assets)
        if prompt_logprobs is not None:
            field = "prompt_logprobs" if request.prompt_logprobs is not None else "echo"
            target.require(Feature.PROMPT_LOGPROBS, field, "give no logprobs of the prompt: leave it out")
        generations: list[Generation] = []
        for position, ids in enumerate(prompts):
            if not ids:
                raise BadRequest("the prompt is empty: send at least one token", param="messages" if is_chat else "prompt")
            max_tokens, explicit = checks.max_tokens_of(request, len(ids), assets, default=None if is_chat else COMPLETION_MAX_TOKENS)
            generations.append(
                Generation(
                    request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{position}",
                    model=target.model,
                    adapter=target.adapter,
                    prompt_ids=ids,
                    max_tokens=max_tokens,
                    explicit_max_tokens=explicit,
                    n=n,
                    sampling=sampling,
                    min_tokens=request.min_tokens or 0,
                    stop_token_ids=stop_token_ids,
                    ignore_eos=bool(request.ignore_eos),
                    top_logprobs=top_logprobs,
                    prompt_logprobs=prompt_logprobs,
                    structured=structured,
                    tenant=target.sender.tenant,
                    request_class=target.sender.request_class,
                    deadline_s=target.sender.deadline_s,
                    priority=checks.priority_of(request.priority),
                    cache_salt=b"" if call.wishes.switches.prefix_cache else os.urandom(SALT_BYTES),
                    switches=call.wishes.switches,
                    traceparent=call.trace.context.traceparent,
                    tracestate=call.trace.context.tracestate,
                    variant=target.variant,
                    arrival=target.arrival,
                )
            )
        return generations


def _constraint(request: CommonRequest, target: Target) -> tuple[Structured | None, str]:
    """The form, and the field that asks for it."""
    asked = structured_of(request)
    if asked is None:
        return None, ""
    form, field = asked
    target.require(Feature.STRUCTURED_OUTPUT, field, "cannot be held to a form of the answer: leave it out and describe it in the prompt")
    return form, field
