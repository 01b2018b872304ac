"""What drafting on another worker gains, by the round trip to the workers and by what a step takes. Owns the order of measuring.

Each prompt, or so many at once as there are streams, is asked twice in a row, with drafts and without, so that both meet the same machine;
who goes first takes turns.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import httpx

from pagoda_bench.across_workers.pair import TARGET, Pace, running_pair
from pagoda_bench.errors import BenchError
from pagoda_bench.results import Row

DRAFT_TOKENS = 8
MAX_TOKENS = 96
AIM = 1.3
NONE, REMOTE = "none", "remote"
OFF = {"X-Pagoda-Features": "speculation=off"}
REQUEST_S = 120.0
SEED = 5
"""One for all: sampled answers with drafts and without are then the same, and take equally many tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    seconds: float
    """From sending the request to having all of the answer; of several at once, this one's share of what they took together."""
    tokens: int
    text: str
    drafts: int
    accepted: int


async def measure(
    paces: Sequence[Pace],
    temperatures: Sequence[float],
    round_trips_s: Sequence[float],
    rounds: Mapping[int, Sequence[Sequence[Sequence[int]]]],
    *,
    target: Path,
    draft: Path,
    scratch: Path,
    say: Callable[[str], None],
) -> AsyncIterator[Row]:
    """`rounds`: by the number of streams, prompts of each round, as ids. Several streams are measured at the first pace."""
    for pace in paces:
        folder = scratch / pace.name
        folder.mkdir()
        async with (
            running_pair(pace, target=target, draft=draft, draft_tokens=DRAFT_TOKENS, scratch=folder) as pair,
            httpx.AsyncClient(base_url=pair.url, timeout=REQUEST_S) as client,
        ):
            first = next(iter(rounds.values()))[0][0]
            await ask(client, first, temperature=0.0, headers={})  # what a first request warms up is not asked for again
            streams = list(rounds) if pace == paces[0] else [each for each in rounds if each == 1]
            for count, temperature, round_trip_s in product(streams, temperatures, round_trips_s):
                pair.set_round_trip(round_trip_s)
                for row in await _point(client, pace, temperature, round_trip_s, rounds[count], streams=count):
                    if row.metric == "gain":
                        say(f"{row.case}: {row.value:.2f} ({row.low:.2f} to {row.high:.2f})")
                    yield row


async def _point(
    client: httpx.AsyncClient,
    pace: Pace,
    temperature: float,
    round_trip_s: float,
    rounds: Sequence[Sequence[Sequence[int]]],
    *,
    streams: int,
) -> list[Row]:
    answers: list[dict[str, list[Answer]]] = []
    for prompts in rounds:
        found: dict[str, list[Answer]] = {NONE: [], REMOTE: []}
        for number, first in enumerate(range(0, len(prompts), streams)):
            for system in (NONE, REMOTE) if number % 2 else (REMOTE, NONE):
                headers = OFF if system == NONE else {}
                found[system] += await _ask_at_once(client, prompts[first : first + streams], temperature=temperature, headers=headers)
        answers.append(found)
    case = f"t={temperature:g} {pace.name} rtt={1000 * round_trip_s:g}ms" + ("" if streams == 1 else f" c={streams}")
    return rows_of(case, answers, can_pay=streams == 1 and round_trip_s <= pace.target_s)


async def _ask_at_once(
    client: httpx.AsyncClient, prompts: Sequence[Sequence[int]], *, temperature: float, headers: dict[str, str]
) -> list[Answer]:
    began_s = time.perf_counter()
    answers = await asyncio.gather(*(ask(client, prompt, temperature=temperature, headers=headers) for prompt in prompts))
    took_s = time.perf_counter() - began_s
    return [replace(answer, seconds=took_s / len(answers)) for answer in answers]


async def ask(client: httpx.AsyncClient, prompt: Sequence[int], *, temperature: float, headers: dict[str, str]) -> Answer:
    body = {"model": TARGET, "prompt": list(prompt), "max_tokens": MAX_TOKENS, "temperature": temperature, "seed": SEED}
    began_s = time.perf_counter()
    response = await client.post("/v1/completions", json=body, headers=headers)
    took_s = time.perf_counter() - began_s
    if response.status_code != 200:
        raise BenchError(f"the router answered {response.status_code}: {response.text[:200]}")
    told = response.json()
    details = told["usage"].get("completion_tokens_details", {})
    accepted = details.get("accepted_prediction_tokens", 0)
    drafts = accepted + details.get("rejected_prediction_tokens", 0)
    return Answer(took_s, told["usage"]["completion_tokens"], told["choices"][0]["text"], drafts, accepted)


def rows_of(case: str, rounds: Sequence[dict[str, list[Answer]]], *, can_pay: bool) -> list[Row]:
    """`can_pay`: the round trip is no longer than a step, so that drafts can be there for most steps."""
    speeds = {system: [_tokens_per_s(found[system]) for found in rounds] for system in (NONE, REMOTE)}
    gains = [drafted / plain for plain, drafted in zip(speeds[NONE], speeds[REMOTE], strict=True)]
    gain, drafted = median(gains), [answer for found in rounds for answer in found[REMOTE]]
    same = [a.text == b.text for found in rounds for a, b in zip(found[NONE], found[REMOTE], strict=True)]
    drafts, accepted = sum(answer.drafts for answer in drafted), sum(answer.accepted for answer in drafted)
    tokens = sum(answer.tokens for answer in drafted)
    rows = [
        Row(case=case, system=system, metric="output_tokens_per_s", value=median(seen), unit="1/s", low=min(seen), high=max(seen))
        for system, seen in speeds.items()
    ]
    aim, met = (f">= {AIM}", gain >= AIM) if can_pay else (None, None)
    rows.append(Row(case=case, system=REMOTE, metric="gain", value=gain, unit="1", low=min(gains), high=max(gains), aim=aim, met=met))
    ratios = {
        "accepted_ratio": accepted / drafts if drafts else 0.0,
        "from_drafts_ratio": accepted / tokens,
        "identical_ratio": sum(same) / len(same),
    }
    return [*rows, *(Row(case=case, system=REMOTE, metric=metric, value=value, unit="1") for metric, value in ratios.items())]


def _tokens_per_s(answers: Sequence[Answer]) -> float:
    return sum(answer.tokens for answer in answers) / sum(answer.seconds for answer in answers)
