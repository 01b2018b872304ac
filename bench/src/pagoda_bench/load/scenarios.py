"""What the users of a run ask for: lengths and turns, no text. Pure; prompts.py turns a plan into requests.

Every draw comes from the run's seed, so that two servers are asked for the same lengths in the same order.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from pagoda_bench.load.arrivals import Arrival


class Scenario(StrEnum):
    SHORT = "short"
    MEDIUM = "medium"
    LONG = "long"
    CHAT = "chat-with-shared-prefix"
    MIXED = "mixed-length"
    AGENTS = "agents"


DESCRIPTIONS = {
    Scenario.SHORT: "128 tokens in, 64 out",
    Scenario.MEDIUM: "512 tokens in, 128 out",
    Scenario.LONG: "4096 tokens in, 256 out",
    Scenario.CHAT: "512 tokens that all requests share, 64 of each one's own, 64 out",
    Scenario.MIXED: "log-normal with a heavy tail: median 128 in (16 to 4096), median 64 out (4 to 1024)",
    Scenario.AGENTS: "3 to 8 turns behind 256 shared tokens; each brings a tool's result (median 96 tokens, 0.2 s later) and asks for 48",
}


@dataclass(frozen=True, slots=True)
class Turn:
    new_tokens: int
    """Of the user, or of a tool's result; what was said before comes on top."""
    output_tokens: int
    pause_s: float = 0.0
    """After the answer before it: the time a tool takes."""


@dataclass(frozen=True, slots=True)
class Conversation:
    shared_tokens: int
    """At the start, the same for every conversation of the run."""
    turns: tuple[Turn, ...]

    def prompt_tokens(self, turn: int) -> int:
        """Of the request of that turn, when every answer before it had the length asked for."""
        return self.shared_tokens + sum(t.new_tokens for t in self.turns[: turn + 1]) + sum(t.output_tokens for t in self.turns[:turn])


@dataclass(frozen=True, slots=True)
class Lengths:
    """What the user of the bench overrides; None: the scenario's own."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None


def conversations(scenario: Scenario, lengths: Lengths, seed: int) -> Iterator[Conversation]:
    """Endless."""
    source = random.Random(f"{scenario} {seed}")  # a string: its hash does not depend on the process
    draw = _DRAWS[scenario]
    while True:
        yield _overridden(draw(source), lengths)


def with_arrival(conversation: Conversation, arrival: Arrival) -> Conversation:
    """A trace's lengths win; it knows nothing of turns, so its request is the first one alone."""
    if arrival.prompt_tokens is None and arrival.output_tokens is None:
        return conversation
    recorded = Lengths(arrival.prompt_tokens, arrival.output_tokens)
    return _overridden(replace(conversation, turns=conversation.turns[:1]), recorded)


def _overridden(conversation: Conversation, lengths: Lengths) -> Conversation:
    """`prompt_tokens` is of the first request as a whole, the shared part included."""
    shared, turns = conversation.shared_tokens, list(conversation.turns)
    if lengths.prompt_tokens is not None:
        shared = min(shared, lengths.prompt_tokens - 1)
        turns[0] = replace(turns[0], new_tokens=lengths.prompt_tokens - shared)
    if lengths.output_tokens is not None:
        turns = [replace(turn, output_tokens=lengths.output_tokens) for turn in turns]
    return Conversation(shared, tuple(turns))


def _heavy(source: random.Random, median: float, sigma: float, low: int, high: int) -> int:
    return max(low, min(high, round(median * source.lognormvariate(0.0, sigma))))


def _mixed(source: random.Random) -> Conversation:
    return Conversation(0, (Turn(_heavy(source, 128, 1.1, 16, 4096), _heavy(source, 64, 0.9, 4, 1024)),))


def _agents(source: random.Random) -> Conversation:
    later = [Turn(_heavy(source, 96, 0.7, 16, 1024), 48, pause_s=0.2) for _ in range(source.randint(2, 7))]
    return Conversation(256, (Turn(64, 48), *later))


_DRAWS: dict[Scenario, Callable[[random.Random], Conversation]] = {
    Scenario.SHORT: lambda source: Conversation(0, (Turn(128, 64),)),
    Scenario.MEDIUM: lambda source: Conversation(0, (Turn(512, 128),)),
    Scenario.LONG: lambda source: Conversation(0, (Turn(4096, 256),)),
    Scenario.CHAT: lambda source: Conversation(512, (Turn(64, 64),)),
    Scenario.MIXED: _mixed,
    Scenario.AGENTS: _agents,
}
