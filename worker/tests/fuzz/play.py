"""One case in one engine: what was answered, and that the engine kept its own rules on the way.

Asserts here speak of the engine alone; whether the tokens are right is asked by oracles.py.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from fuzz.cases import MOST_STEPS, VOCAB, Case, Event
from fuzz.models import Models
from pagoda_worker.engine import Engine
from pagoda_worker.errors import WorkerError
from pagoda_worker.execution.runner import InFlight
from pagoda_worker.request import Finish, PromptLogprobs, Request, StepOutput, TokenLogprobs
from pagoda_worker.scheduling.plan import StepPlan


@dataclass(slots=True)
class Answer:
    """Of one sequence."""

    request: Request
    version: int
    """Of its adapter, when it was submitted; 0 without one."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    embedding: list[float] | None = None
    cached_tokens: int = 0
    starts: int = 0
    finish: Finish | None = None


Answers = dict[tuple[str, int], Answer]


class Player:
    """Owns nothing but what it heard; one engine may play a case several times."""

    def __init__(self, case: Case, engine: Engine, models: Models, known: Answers | None = None) -> None:
        """`known`: from an earlier run, to guess from, and to resume as if another worker had begun."""
        self._case, self._engine, self._models, self._known = case, engine, models, known or {}
        self._random = random.Random(case.seed)
        self._answers: Answers = {}
        self._versions: dict[str, int] = {}
        self.refused: dict[str, str] = {}

    def play(self) -> Answers:
        self._engine.wake()
        with complaints() as heard, fault(self._engine, self._case):
            for act, level in zip(self._case.acts, self._case.sleeps, strict=True):
                self._act(list(act))
                self._idle()
                if level:
                    self._engine.sleep(level)
                    self._engine.wake()
        assert not heard, f"the engine complained: {heard[0]}"
        return self._answers

    def _act(self, events: list[Event]) -> None:
        step = 0
        while events or self._engine.has_work:
            while events and (events[0].at <= step or not self._engine.has_work):
                self._happen(events.pop(0))
            if self._engine.has_work:
                if self._engine.facts.speculative == "remote":
                    self._guess()
                self._hear(self._engine.step())
                self._engine.check_integrity()
            step += 1
            assert step < MOST_STEPS, "somebody waits for ever"

    def _happen(self, event: Event) -> None:
        engine = self._engine
        if event.load:
            name, version = event.load
            engine.adapters.load(name, self._models.adapter(self._case.model, name, version))
            self._versions[name] = version
        elif event.unload:
            if self._versions.pop(event.unload, None) is not None:
                engine.adapters.unload(event.unload)
        elif event.cancel:
            engine.cancel(*event.cancel)
        elif event.submit:
            self._submit(event.submit)

    def _submit(self, request: Request) -> None:
        known = self._known.get((request.request_id, 0))
        if known and request.n == 1 and not request.embedding and self._random.random() < 0.3:
            most = min(len(known.tokens), request.max_tokens - 1, self._case.settings["max_model_len"] - len(request.prompt_ids) - 1)
            resumed = [*known.request.resume_ids, *known.tokens][: self._random.randint(0, max(most, 0))]
            request = replace(request, resume_ids=max(resumed, request.resume_ids, key=len))
        try:
            self._engine.submit(request)
        except WorkerError as refusal:
            self.refused[request.request_id] = f"{type(refusal).__name__}: {refusal}"
            return
        version = self._versions.get(request.adapter, 0)
        self._answers |= {(request.request_id, i): Answer(request, version) for i in range(request.n)}

    def _guess(self) -> None:
        """As a router does: some too late, some wrong, some of what nobody runs any more."""
        for (request_id, index), answer in list(self._answers.items())[-8:]:
            if self._random.random() < 0.4:
                at = max(len(answer.tokens) + self._random.choice([-1, 0, 0, 0, 1, 3]), 0)
                known = self._known.get((request_id, index), answer).tokens[at : at + self._random.randint(1, 9)]
                if self._random.random() < 0.3:
                    known = [*known[:2], self._random.randrange(VOCAB)]
                at += len(answer.request.resume_ids)
                self._engine.draft(request_id, index, at, known)

    def _hear(self, output: StepOutput) -> None:
        assert not output.rejections, output.rejections
        told = set()
        for update in output.updates:
            key = (update.request_id, update.sequence)
            answer = self._answers[key]
            assert answer.finish is None, f"{key} was told of after its end"
            assert key not in told, f"{key} was told of twice in one step"
            told.add(key)
            answer.tokens += update.token_ids
            answer.logprobs += update.logprobs or []
            answer.prompt_logprobs += [] if update.prompt_logprobs is None else [update.prompt_logprobs]
            answer.embedding = update.embedding or answer.embedding
            answer.starts += update.started
            answer.cached_tokens = max(answer.cached_tokens, update.cached_tokens)
            answer.finish = update.finish

    def _idle(self) -> None:
        """Nobody is here: everything must be free."""
        engine = self._engine
        engine.check_integrity()
        waiting = [key for key, answer in self._answers.items() if answer.finish is None]
        assert not waiting, f"never ended: {waiting}"
        state = engine.idle_state()
        assert (state.num_running, state.num_waiting, state.queued_prefill_tokens) == (0, 0, 0), state
        assert state.kv_free_tokens == state.kv_capacity_tokens, "blocks are held while nothing runs"


@contextmanager
def fault(engine: Engine, case: Case) -> Iterator[None]:
    """Steps that fail once they were computed, as on a device that runs out in the last layer. Sleep makes a new runner, which is sound."""
    runner, launch = engine.runner, engine.runner.launch

    def failing(plan: StepPlan) -> InFlight:
        pending = launch(plan)
        parts = len(plan.decodes) + len(plan.chunks) + len(plan.verifications)
        if case.most_parts is not None and parts > case.most_parts:
            raise torch.OutOfMemoryError("the fuzzer's")
        if case.culprit in [each.request_id for each in [*plan.sampling(), *(chunk.sequence for chunk in plan.chunks)]]:
            raise torch.OutOfMemoryError("the fuzzer's")
        return pending

    if case.most_parts is not None or case.culprit:
        runner.launch = failing  # type: ignore[method-assign]
    try:
        yield
    finally:
        runner.launch = launch  # type: ignore[method-assign]


@contextmanager
def complaints() -> Iterator[list[str]]:
    """Whatever the worker logs as a warning or worse."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "the fuzzer's" not in record.getMessage():
                heard.append(record.getMessage())

    ear, logger = Ear(logging.WARNING), logging.getLogger("pagoda_worker")
    logger.addHandler(ear)
    try:
        yield heard
    finally:
        logger.removeHandler(ear)
