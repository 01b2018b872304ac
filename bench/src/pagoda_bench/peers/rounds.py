"""Alternating rounds: every system has the same prompts in the same round, and the order turns by one each round.

Knows systems only by their protocol. Called by the runner and by the gate.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence

from pagoda_bench.peers.cases import Case, prompts_for
from pagoda_bench.peers.compare import Measured, same_text
from pagoda_bench.peers.system import PeerUnavailable, Round, System

WARM_UP_TOKENS = 16
"""Enough to compile and to see whether the texts agree."""

Say = Callable[[str], None]


def turned(names: Sequence[str], by: int) -> list[str]:
    """Whoever ran after a slow neighbour in this round runs elsewhere in the next one."""
    at = by % len(names) if names else 0
    return [*names[at:], *names[:at]]


def measure(
    case: Case, systems: Mapping[str, System], rounds: int, *, reference: str, unavailable: MutableMapping[str, str], say: Say
) -> list[Measured]:
    """One uncounted round, then `rounds` counted ones. A system that fails leaves this case with its reason in `unavailable`."""
    alive = dict(systems)
    warm = _round(case, alive, list(alive), 0, min(WARM_UP_TOKENS, case.output_tokens), unavailable)
    counted: dict[str, list[Round]] = {name: [] for name in alive}
    for number in range(1, rounds + 1):
        for name, one in _round(case, alive, turned(list(alive), number), number, case.output_tokens, unavailable).items():
            counted[name].append(one)
            say(f"{case.name:12} round {number}: {name:24} {case.tokens / one.seconds:8.1f} tok/s")
    known = warm.get(reference)
    return [
        Measured(
            case.name,
            name,
            tuple(case.tokens / one.seconds for one in counted[name]),
            tuple(seconds for one in counted[name] for seconds in one.ttft_s),
            None if known is None or name == reference else same_text(known.texts, warm[name].texts),
        )
        for name in systems
        if name in alive
    ]


def _round(
    case: Case, alive: dict[str, System], order: Sequence[str], number: int, output_tokens: int, unavailable: MutableMapping[str, str]
) -> dict[str, Round]:
    """Takes systems that fail out of `alive`."""
    prompts = prompts_for(case, seed=(case.streams, case.prompt_tokens, number))
    done: dict[str, Round] = {}
    for name in order:
        try:
            done[name] = alive[name].round(prompts, output_tokens)
        except PeerUnavailable as error:
            unavailable[f"{name} ({case.name})"] = str(error)
            del alive[name]
    return done
