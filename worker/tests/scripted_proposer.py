"""A proposer that knows what will come, and is wrong as often as it is told to be: so a few tokens see every way a verification can go."""

import random
from collections.abc import Callable

from pagoda_worker.engine import Engine
from pagoda_worker.scheduling.plan import StepPlan
from pagoda_worker.scheduling.sequence import Sequence
from pagoda_worker.scheduling.verification import Verification
from pagoda_worker.speculation.speculation import Speculation


class ScriptedProposer:
    def __init__(self, outputs: dict[tuple[str, int], list[int]], vocab_size: int, *, seed: int = 0) -> None:
        self._outputs = outputs
        self._vocab = vocab_size
        self._random = random.Random(seed)

    def propose(self, sequence: Sequence, count: int) -> list[int]:
        output = self._outputs.get(sequence.key, [])
        told = len(sequence.tokens) - sequence.output_start
        drafts = output[told : told + self._random.randint(0, count)]
        wrong = self._random.randint(0, count)
        return [draft if i != wrong else self._random.randrange(self._vocab) for i, draft in enumerate(drafts)]

    def planned(self, plan: StepPlan) -> None:
        pass

    def judged(self, verification: Verification, accepted: int) -> None:
        pass


def speculate(engine: Engine, outputs: dict[tuple[str, int], list[int]], *, tokens: int = 5, seed: int = 0) -> Speculation:
    """From here on the engine drafts by the script."""
    proposer = ScriptedProposer(outputs, engine.facts.vocab_size, seed=seed)
    possible: Callable[[Sequence, list[int]], list[int]] = engine.constraints.longest_possible
    engine.speculation = Speculation(proposer, tokens=tokens, possible=possible, adapting=False)
    return engine.speculation
