"""Updates of many steps, put together: what each sequence of a batch of requests said in the end.

Owns what was gathered so far. Called by `Engine.generate`; knows no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pagoda_worker.request import Finish, Request, SequenceUpdate, TokenLogprobs


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
