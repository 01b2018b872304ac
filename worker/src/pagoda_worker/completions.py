"""Updates of many steps, put together: what each sequence of a batch of requests said in the end.

Owns what was gathered so far. Called by `Engine.generate`; knows no engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pagoda_worker.request import EngineState, Finish, Request, SequenceUpdate, StepOutput, TokenLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sequence of `Engine.generate`."""

    prompt: int
    """Which of the prompts."""
    sequence: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    """None: not asked for."""
    finish: Finish


class Steps(Protocol):
    """What of an engine runs a batch."""

    @property
    def has_work(self) -> bool: ...
    def submit(self, request: Request) -> None: ...
    def step(self) -> StepOutput: ...


class Completions:
    def __init__(self) -> None:
        self._updates: dict[tuple[int, int], list[SequenceUpdate]] = {}

    @staticmethod
    def requests(usual: Request, prompts: Sequence[Sequence[int]], adapters: Sequence[str] = ()) -> list[Request]:
        """One for each prompt, as `usual` is otherwise. `adapters`: their names, or none at all."""
        names = adapters or [""] * len(prompts)
        return [
            replace(usual, request_id=f"offline-{i}", prompt_ids=list(prompt), adapter=name)
            for i, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        ]

    @classmethod
    def run(
        cls,
        engine: Steps,
        usual: Request,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str] = (),
        *,
        on_update: Callable[[SequenceUpdate], None] | None = None,
        on_step: Callable[[EngineState], None] | None = None,
    ) -> "Completions":
        """All prompts to their end. `on_step` hears the state after each step, before its updates."""
        for request in cls.requests(usual, prompts, adapters):
            engine.submit(request)
        completions = cls()
        while engine.has_work:
            output = engine.step()
            if on_step:
                on_step(output.state)
            for update in output.updates:
                completions.add(update)
                if on_update:
                    on_update(update)
        return completions

    def add(self, update: SequenceUpdate) -> None:
        key = int(update.request_id.removeprefix("offline-")), update.sequence
        self._updates.setdefault(key, []).append(update)

    def finished(self, *, with_logprobs: bool) -> list[Completion]:
        """In order of prompt, then sequence."""
        return [
            Completion(
                prompt=prompt,
                sequence=sequence,
                token_ids=[token for update in updates for token in update.token_ids],
                logprobs=[each for update in updates for each in update.logprobs or ()] if with_logprobs else None,
                finish=updates[-1].finish,
            )
            for (prompt, sequence), updates in sorted(self._updates.items())
            if updates[-1].finish
        ]
