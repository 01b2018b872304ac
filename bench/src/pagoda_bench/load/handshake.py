"""Finds out how a server can be asked, before anything is measured: its model, whether it takes token ids and forced lengths, what its
template adds. One request for each guess; the first that is answered is how all others are asked.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pagoda_bench.errors import ServerUnusable
from pagoda_bench.load.client import Client, Outcome
from pagoda_bench.load.filler import Filler
from pagoda_bench.load.prompts import Dialect, Endpoint, Prompts
from pagoda_bench.load.reading import StreamReading
from pagoda_bench.load.scenarios import Conversation, Turn

_PROBE = Conversation(0, (Turn(24, 4),))


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    owned_by: str
    """Says which server it is, where it says anything."""


@dataclass(frozen=True, slots=True)
class Agreement:
    dialect: Dialect
    notes: tuple[str, ...]
    """What the server refused, and what is done instead."""


class _Body:
    def __init__(self) -> None:
        self.content = bytearray()

    def feed(self, body: bytes, now: float) -> None:
        self.content += body


async def find_model(client: Client, wanted: str | None) -> Model:
    """Raises ServerUnusable."""
    body = _Body()
    outcome = await client.exchange(client.target.request("GET", "/models"), body)
    if outcome.failure is not None:
        if wanted is not None and outcome.status != 0:
            return Model(wanted, "")  # a server without a list; the first request will tell
        raise ServerUnusable(_sentence(client, outcome))
    try:
        models = {str(item["id"]): str(item.get("owned_by", "")) for item in json.loads(body.content)["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ServerUnusable(f"{_address(client)}/models is no list of models: is this an OpenAI-compatible server?") from error
    name = wanted if wanted is not None else next(iter(models), None) if len(models) == 1 else None
    if name is None or (name not in models and models):
        raise ServerUnusable(f"say --model: the server has {', '.join(models) or 'none'}" + (f", not {wanted}" if wanted else ""))
    return Model(name, models.get(name, ""))


def guesses(endpoint: Endpoint) -> Sequence[tuple[str, Dialect]]:
    """From the most exact to the plainest, each with what is given up."""
    exact = Dialect(endpoint=endpoint, token_ids=endpoint == "completions", forced_length=True)
    shy = replace(exact, special_text=False)
    free = replace(shy, forced_length=False)
    steps = [("", exact), ("skip_special_tokens is refused: tokens without text are no chunks", shy)]
    steps.append(("ignore_eos and min_tokens are refused: answers may be shorter than asked", free))
    if endpoint == "completions":
        steps.append(("prompts of token ids are refused too: prompts are text", replace(free, token_ids=False)))
    steps.append(("stream_options is refused too: tokens are counted as chunks", replace(free, token_ids=False, usage=False)))
    return steps


async def agree(client: Client, model: str, endpoint: Endpoint, filler: Filler, *, prompt_seed: str) -> Agreement:
    """Raises ServerUnusable with what the server said to the plainest request."""
    notes: list[str] = []
    refusal: Outcome | None = None
    for given_up, dialect in guesses(endpoint):
        prompts = Prompts(model, dialect, filler, prompt_seed=prompt_seed)
        request = prompts.dialogue(_PROBE, "handshake").next()
        reading = StreamReading()
        outcome = await client.exchange(client.target.request("POST", prompts.path, request.body), reading)
        if given_up and refusal is not None:
            notes.append(f"{given_up} (the server said: {refusal.said or refusal.failure})")
        if outcome.failure is None and reading.error is None:
            return Agreement(replace(dialect, overhead_tokens=_overhead(dialect, reading, request.prompt_tokens)), tuple(notes))
        refusal = outcome
        if outcome.status not in (400, 422):
            break
    assert refusal is not None
    raise ServerUnusable(_sentence(client, refusal))


def _overhead(dialect: Dialect, reading: StreamReading, asked: int | None) -> int:
    if dialect.token_ids or reading.usage is None or asked is None:
        return 0
    return max(0, reading.usage.prompt_tokens - asked)


def _sentence(client: Client, outcome: Outcome) -> str:
    if outcome.status == 0:
        return f"{_address(client)} cannot be used: {outcome.failure} ({outcome.detail or 'no answer'})"
    hint = "; give the key with --api-key or OPENAI_API_KEY" if outcome.status in (401, 403) else ""
    return f"{_address(client)} answers {outcome.status}: {outcome.said or 'nothing more'}{hint}"


def _address(client: Client) -> str:
    target = client.target
    return f"{'https' if target.tls else 'http'}://{target.host}:{target.port}{target.prefix}"
