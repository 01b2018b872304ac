"""Requests through an engine to their ends, for tests that look at whole outputs."""

from dataclasses import dataclass, field

from pagoda_worker.engine import Engine
from pagoda_worker.request import Finish, PromptLogprobs, Rejection, Request


@dataclass
class Outcome:
    """Of one sequence."""

    tokens: list[int] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    embedding: list[float] | None = None
    finish: Finish | None = None

    @property
    def reason(self) -> str:
        assert self.finish is not None
        return self.finish.reason.name


def run_all(engine: Engine, *requests: Request) -> dict[tuple[str, int], Outcome]:
    """By (request id, sequence). Nothing may be rejected."""
    outcomes, rejections = run_with_rejections(engine, *requests)
    assert not rejections
    return outcomes


def run_with_rejections(engine: Engine, *requests: Request) -> tuple[dict[tuple[str, int], Outcome], dict[str, Rejection]]:
    outcomes: dict[tuple[str, int], Outcome] = {}
    rejections: dict[str, Rejection] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        output = engine.step()
        rejections |= {each.request_id: each for each in output.rejections}
        for update in output.updates:
            outcome = outcomes.setdefault((update.request_id, update.sequence), Outcome())
            outcome.tokens += update.token_ids
            outcome.prompt_logprobs += [] if update.prompt_logprobs is None else [update.prompt_logprobs]
            outcome.embedding = update.embedding or outcome.embedding
            outcome.finish = update.finish or outcome.finish
    engine.check_integrity()
    return outcomes, rejections
