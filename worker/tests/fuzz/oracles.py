"""What an answer must be: by its request alone, and by what a plain engine says to the same request alone.

The plain engine has the numerics of the case and nothing else: one request at a time, its prompt whole, no prefix cache, no guesses. Where
the two part at a token, that token must be a near tie (docs/batch-invariance.md): with a nudge for it and against the other one the plain
engine must choose it too. From there the comparison goes on behind the token that was taken, so that a tie hides nothing after it.
"""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fuzz.cases import CHOICES, REGEX, Case
from fuzz.models import Models, engine_of
from fuzz.play import Answer, Answers
from pagoda_worker.engine import Engine
from pagoda_worker.request import FinishReason, Request, Sampling, TokenLogprobs

NUDGES = (1e-4, 1e-3, 1e-2, 0.05, 0.2, 0.5, 1.0)
WIDEST = {"fp32": 0.05, "bf16": 0.5}
"""The nudge that may be needed, by dtype; with weights or a cache in bytes ROUNDED times as much."""
ROUNDED = {"fp32": 10.0, "bf16": 2.0}
"""A number half way between two bytes goes either way by the last bit of a sum, and others after it: now and then a logprob is 0.1 to 0.35
off where the sums of float32 alone are 0.00005."""
LOGPROBS = {"fp32": 0.05, "bf16": 0.7}
"""How far the logarithm of a probability may be off where tokens agree; likewise."""


class Wrong(AssertionError):
    """An answer that should not be; the message begins with what it was an answer to."""


# ------------------------------------------------------------ by the request alone


def check_alone(answer: Answer, case: Case, eos: tuple[int, ...], tokenizer: Tokenizer) -> None:
    request, finish = answer.request, answer.finish
    assert finish is not None
    usage, sampling = finish.usage, request.sampling
    limit = min(request.max_tokens, case.settings["max_model_len"] - len(request.prompt_ids))
    emitted = len(request.resume_ids) + len(answer.tokens)
    _must(finish.reason is not FinishReason.ENGINE_ERROR or request.request_id == case.culprit, f"ended by {finish.detail}")
    _must(finish.reason is not FinishReason.DEADLINE or request.deadline_s is not None, "ended by no deadline of its own")
    stopped = finish.reason is FinishReason.STOP
    _must(answer.starts <= 1, f"started {answer.starts} times")
    _must(usage.prompt_tokens == len(request.prompt_ids), f"usage says {usage.prompt_tokens} prompt tokens")
    if request.embedding:
        ended = finish.reason not in (FinishReason.STOP, FinishReason.LENGTH)
        _must(ended or (stopped and bool(answer.embedding) and not answer.tokens), "an embedding without one, or with an output")
        return
    enders = {*request.stop_token_ids, *(() if request.ignore_eos else eos)}
    sampled_end = finish.stop_token_id in enders if stopped else False
    _must(usage.completion_tokens - emitted in ({0, 1} if stopped else {0}), f"usage says {usage.completion_tokens} of {emitted} tokens")
    _must(usage.completion_tokens <= limit, f"{usage.completion_tokens} tokens of {limit}")
    if finish.reason is FinishReason.LENGTH:
        _must(emitted == limit, f"ended by length at {emitted} of {limit}")
    elif stopped and request.structured is None:
        _must(sampled_end, f"stopped by {finish.stop_token_id}")
        _must(usage.completion_tokens == emitted + 1, "the stop token is not counted")
        _must(emitted >= request.min_tokens, f"stopped after {emitted} tokens of at least {request.min_tokens}")
    _must(not enders.intersection(answer.tokens), "a stop token was told")
    _must(not sampling.allowed_token_ids or set(answer.tokens) <= {*sampling.allowed_token_ids}, "a token that is not allowed")
    output = [*request.resume_ids, *answer.tokens]
    for word in sampling.bad_words:
        _must(not any(output[i : i + len(word)] == word for i in range(len(output))), f"bad word {word}")
    _check_usage(answer, case)
    _check_logprobs(answer)
    if request.structured and stopped and finish.stop_token_id not in request.stop_token_ids:
        _check_text(request, tokenizer.decode(output, skip_special_tokens=False))


def _check_usage(answer: Answer, case: Case) -> None:
    assert answer.finish is not None
    usage, request = answer.finish.usage, answer.request
    cached = usage.cached_tokens if case.settings["prefix_caching"] and request.use_prefix_cache else -usage.cached_tokens
    _must(0 <= cached < len(request.prompt_ids) + len(request.resume_ids), f"{usage.cached_tokens} cached tokens")
    _must(answer.cached_tokens in (0, usage.cached_tokens), f"{answer.cached_tokens} cached tokens, then {usage.cached_tokens}")
    places = usage.accepted_by_place
    _must(sum(places) == usage.accepted_draft_tokens <= usage.draft_tokens, f"drafts {usage}")
    _must(list(places) == sorted(places, reverse=True) and max(places, default=0) <= usage.drafts, f"drafts {usage}")
    _must(usage.accepted_draft_tokens <= usage.completion_tokens, f"drafts {usage}")
    most = (
        case.settings["draft_tokens"] if request.max_draft_tokens is None else min(request.max_draft_tokens, case.settings["draft_tokens"])
    )
    _must(len(places) <= most and (most > 0 or not usage.drafts), f"drafts {usage} of at most {most}")


def _check_logprobs(answer: Answer) -> None:
    request = answer.request
    if request.top_logprobs is None:
        _must(not answer.logprobs, "logprobs that nobody asked for")
    else:
        assert answer.finish is not None
        _must(len(answer.logprobs) == len(answer.tokens), f"{len(answer.logprobs)} logprobs of {len(answer.tokens)} tokens")
        for token, told in zip(answer.tokens, answer.logprobs, strict=True):
            values = [value for _, value in told.top]
            _must(len(values) == request.top_logprobs, f"{len(values)} logprobs, asked for {request.top_logprobs}")
            _must(len({each for each, _ in told.top}) == len(values), "a token is told of twice in one place")
            _must(values == sorted(values, reverse=True), "logprobs out of order")
            _must(all(value <= 1e-5 for value in [told.sampled, *values]), "a logprob above 0")
            _must(dict(told.top).get(token, told.sampled) == told.sampled, "two logprobs of one token")
            if values:
                _must(told.sampled <= values[0], "a token more likely than the most likely one")
    if request.prompt_logprobs is not None:
        others = len(answer.prompt_logprobs)
        _must(others <= 1, f"prompt logprobs came {others} times")
        for told in answer.prompt_logprobs:
            places, k = len(request.prompt_ids) - 1, told.k
            _must(
                (len(told.own), len(told.top), len(told.top_ids)) == (places, k * places, k * places), "prompt logprobs of another length"
            )
            _must(all(value <= 1e-5 for value in [*told.own, *told.top]), "a prompt's logprob above 0")


def _check_text(request: Request, text: str) -> None:
    assert request.structured is not None
    kind = request.structured.kind
    if kind == "choice":
        _must(text in CHOICES, f"{text!r} is none of the choices")
    elif kind == "regex":
        _must(re.fullmatch(REGEX, text) is not None, f"{text!r} does not match")
    elif kind == "grammar":
        _must(re.fullmatch(r"(\(*)x(\)*)", text) is not None and text.count("(") == text.count(")"), f"{text!r} is not of the grammar")
    else:
        value = json.loads(text)
        _must(isinstance(value, dict), f"{text!r} is no object")
        if kind == "json_schema":
            good = set(value) == {"a", "b"} and isinstance(value["a"], int) and value["b"] in ("x", "yy")
            _must(good, f"{text!r} is not of the schema")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


# ------------------------------------------------------------ by a plain engine


class Plain:
    """The plain engine of a case, and what it said so far."""

    def __init__(self, case: Case, models: Models) -> None:
        self._case, self._models = case, models
        self.engine: Engine = engine_of(models.reference_config(case))
        self._loaded: dict[str, int] = {}
        self._said: dict[tuple[Any, ...], Answer] = {}
        self.ties: Counter[float] = Counter()
        """Nudges that were needed where tokens parted."""
        self.farthest = 0.0
        """Difference of a logprob."""
        in_bytes = case.settings["quantization"] != "none" or case.settings["kv_dtype"] != "auto"
        dtype = "bf16" if case.settings["quantization"] == "fp8" else case.settings["dtype"]  # whose products round activations to it
        factor = ROUNDED[dtype] if in_bytes else 1.0
        self._widest, self._off = (limits[dtype] * factor for limits in (WIDEST, LOGPROBS))

    def says(self, request: Request, version: int) -> Answer:
        """`request` has n = 1."""
        if request.adapter and self._loaded.get(request.adapter) != version:
            self.engine.adapters.load(request.adapter, self._models.adapter(self._case.model, request.adapter, version))
            self._loaded[request.adapter] = version
        answer = Answer(request, version)
        self.engine.submit(request)
        while self.engine.has_work:
            for update in self.engine.step().updates:
                answer.tokens += update.token_ids
                answer.logprobs += update.logprobs or []
                answer.prompt_logprobs += [] if update.prompt_logprobs is None else [update.prompt_logprobs]
                answer.embedding = update.embedding or answer.embedding
                answer.finish = update.finish
        return answer

    def check(self, answers: Answers) -> None:
        for key, answer in answers.items():
            try:
                self._check(answer, key[1])
            except AssertionError as wrong:
                raise Wrong(f"{key} of {answer}: {wrong}") from wrong

    def _check(self, answer: Answer, index: int) -> None:
        request = answer.request
        seed = None if request.sampling.seed is None else request.sampling.seed + index
        sampling = dataclasses.replace(request.sampling, seed=seed)
        more: dict[str, Any] = {"use_prefix_cache": False, "priority": 0, "deadline_s": None, "runs_alone": False}
        alone = dataclasses.replace(request, request_id="alone", n=1, sampling=sampling, **more)
        key = (request.request_id, index, answer.version, len(request.resume_ids))
        if key not in self._said:
            self._said[key] = self.says(alone, answer.version)
        self._compare(answer, self._said[key], alone)

    def _compare(self, answer: Answer, plain: Answer, alone: Request) -> None:
        assert answer.finish is not None
        assert plain.finish is not None
        cancelled = answer.finish.reason in (FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ENGINE_ERROR)
        if alone.embedding:
            self._compare_numbers(answer.embedding or [], plain.embedding or [], cancelled=cancelled, what="embedding")
            return
        if answer.prompt_logprobs:
            self._compare_numbers(answer.prompt_logprobs[0].own, plain.prompt_logprobs[0].own, cancelled=False, what="prompt logprob")
        mine, done = _all_tokens(answer), 0
        while True:
            theirs = _all_tokens(plain)
            at = next((i for i, (one, other) in enumerate(zip(mine[done:], theirs, strict=False)) if one != other), None)
            same = min(len(mine) - done, len(theirs)) if at is None else at
            self._compare_logprobs(answer.logprobs[done : done + same], plain.logprobs[:same])
            if at is None:
                break
            done += at
            self._near_tie(answer, alone, mine[:done], mine[done], theirs[at])
            if done + 1 == len(mine):
                return
            done += 1
            resumed = dataclasses.replace(alone, resume_ids=[*alone.resume_ids, *mine[:done]], prompt_logprobs=None)
            plain = self.says(resumed, answer.version)
            assert plain.finish is not None
        if not cancelled:
            _must(len(mine) - done == len(theirs), f"{len(mine) - done} tokens, and alone {len(theirs)}: {theirs}")
            ends = [(each.reason, each.stop_token_id) for each in (answer.finish, plain.finish)]
            _must(ends[0] == ends[1], f"ended by {ends[0]}, alone by {ends[1]}")

    def _near_tie(self, answer: Answer, alone: Request, before: list[int], mine: int, theirs: int) -> None:
        _must(not self._case.exact, f"token {len(before)} is {mine}, and alone {theirs}, where every bit should be the same")
        base = dataclasses.replace(alone, resume_ids=[*alone.resume_ids, *before], prompt_logprobs=None)
        for nudge in NUDGES:
            if nudge > self._widest:
                break
            for sampling in _variants(alone.sampling, nudge):
                bias = Counter(sampling.logit_bias)
                bias.update({mine: nudge, theirs: -nudge})
                nudged = dataclasses.replace(base, sampling=dataclasses.replace(sampling, logit_bias=dict(bias)))
                if _all_tokens(self.says(nudged, answer.version))[:1] == [mine]:
                    self.ties[nudge] += 1
                    return
        raise Wrong(f"token {len(before)} is {mine}, and alone {theirs}: no near tie")

    def _compare_logprobs(self, mine: list[TokenLogprobs], theirs: list[TokenLogprobs]) -> None:
        if mine and theirs:
            both = list(zip(mine, theirs, strict=False))
            self._compare_numbers([a.sampled for a, _ in both], [b.sampled for _, b in both], cancelled=False, what="logprob")

    def _compare_numbers(self, mine: list[float], theirs: list[float], *, cancelled: bool, what: str) -> None:
        if cancelled and not mine:
            return
        # What is hardly possible is off by more, and matters less.
        off = [abs(a - b) / max(1.0, -b / 4) for a, b in zip(mine, theirs, strict=True)]
        worst = max(off, default=0.0)
        self.farthest = max(self.farthest, worst)
        most = 0.0 if self._case.exact else self._off
        _must(worst <= most, f"{what} {off.index(worst)} is {worst:.3g} off" if off else "")


def _all_tokens(answer: Answer) -> list[int]:
    """What was sampled: the token that ended it too."""
    finish = answer.finish
    assert finish is not None
    own = finish.usage.completion_tokens - len(answer.request.resume_ids)
    return [*answer.tokens, finish.stop_token_id or 0] if own > len(answer.tokens) else list(answer.tokens)


def _variants(sampling: Sampling, nudge: float) -> list[Sampling]:
    """A filter's edge may be what tips it."""
    variants = [sampling]
    if sampling.temperature > 0:
        if sampling.top_p < 1:
            shifts = (-nudge, nudge) if nudge < 0.2 else (-0.1, 0.1)
            variants += [dataclasses.replace(sampling, top_p=min(max(sampling.top_p + shift, 1e-3), 1.0)) for shift in shifts]
        if sampling.top_k:
            variants += [dataclasses.replace(sampling, top_k=max(sampling.top_k + shift, 1)) for shift in (-1, 1)]
        if sampling.min_p:
            variants += [dataclasses.replace(sampling, min_p=sampling.min_p * factor) for factor in (1 - nudge / 2, 1 + nudge / 2)]
    return variants


def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
