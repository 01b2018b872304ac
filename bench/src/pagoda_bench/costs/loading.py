"""Whether running streams stall while adapters are loaded, swapped and unloaded: pauses between their tokens, by what is done meanwhile.

Over HTTP and `pagoda up`, as a user has it. Called by `run.py`.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from pagoda_bench.costs.jobs import ADAPTERS, ALL_PROJECTIONS
from pagoda_bench.costs.measure import Place, Say, row_of
from pagoda_bench.errors import BenchError
from pagoda_bench.local_stack import local_stack
from pagoda_bench.random_adapters import write_adapters
from pagoda_bench.results import Row

STREAMS, RANK = 8, 16
NOTHING, LOADED, SWAPPED, UNLOADED = "nothing else", "ten are loaded", "ten are swapped", "ten are unloaded"
QUIET_S = 8.0
ANSWER_TOKENS = 2048
"""More than a run takes: streams are left when it ends."""
TIMEOUT_S = 120.0
Pauses = Mapping[str, Sequence[float]]
"""Seconds, of all streams, by phase."""


class NotLoaded(BenchError):
    """The router or a worker refused an adapter."""


def adapter_loading(place: Place, model: str, *, rounds: int, say: Say) -> Iterator[Row]:
    """Raises NotLoaded, and what `pagoda up` raises."""
    own = place.scratch / "own"
    folders = write_adapters(place.folder, own, count=2 * ADAPTERS, rank=RANK, targets=ALL_PROJECTIONS)
    manifest = place.scratch / "model.yaml"
    manifest.write_text(json.dumps(_manifest(place.folder)))  # JSON is YAML
    found: dict[str, list[Sequence[float]]] = {}
    took: dict[str, list[float]] = {}
    with local_stack(manifest) as stack:
        for number in range(rounds):
            pauses, each_s = asyncio.run(_watched(stack.url, list(folders.values())))
            for phase, values in pauses.items():
                found.setdefault(phase, []).append(values)
                say(f"round {number + 1}: {phase}: {len(values)} pauses, the longest {1000 * max(values):.0f} ms")
            for phase, seconds in each_s.items():
                took.setdefault(phase, []).append(seconds)
    yield from loading_rows(f"{model} int8 c={STREAMS} rank {RANK}, all projections", found, took)


def loading_rows(case: str, found: Mapping[str, Sequence[Sequence[float]]], took: Mapping[str, Sequence[float]]) -> Iterator[Row]:
    for phase, by_round in found.items():
        ordered = [sorted(values) for values in by_round]
        yield row_of(case, "itl_p50_s", "s", [values[len(values) // 2] for values in ordered], system=phase)
        yield row_of(case, "itl_p99_s", "s", [values[len(values) * 99 // 100] for values in ordered], system=phase)
        yield row_of(case, "itl_max_s", "s", [values[-1] for values in ordered], system=phase)
        if phase in took:
            yield row_of(case, "each_took_s", "s", took[phase], system=phase)


def _manifest(folder: Path) -> dict[str, object]:
    engine = {"quantization": "int8", "maxModelLen": ANSWER_TOKENS + 256, "adapters": {"slots": ADAPTERS, "maxRank": RANK}}
    return {
        "apiVersion": "pagoda.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": "loading"},
        "spec": {"model": {"source": f"file://{folder}"}, "engine": engine},
    }


async def _watched(url: str, folders: Sequence[Path]) -> tuple[Pauses, Mapping[str, float]]:
    """Pauses by phase, and how long one call of each took."""
    phase = NOTHING
    pauses: dict[str, list[float]] = {}
    each_s: dict[str, float] = {}

    def note(pause_s: float) -> None:
        pauses.setdefault(phase, []).append(pause_s)

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client, _streams(client, note):
        await asyncio.sleep(QUIET_S)
        for name, first in ((LOADED, 0), (SWAPPED, ADAPTERS), (UNLOADED, None)):
            phase, began = name, time.monotonic()
            for at in range(ADAPTERS):
                if first is None:
                    answer = await client.delete(f"/admin/v1/adapters/own-{at}")
                else:
                    asked = {"model": "loading", "name": f"own-{at}", "source": f"file://{folders[first + at]}"}
                    answer = await client.post("/admin/v1/adapters", json=asked)
                if answer.status_code != 200:
                    raise NotLoaded(f"own-{at}: {answer.status_code}: {answer.text[:300]}")
            each_s[name] = (time.monotonic() - began) / ADAPTERS
        phase = "after them"
    pauses.pop(phase, None)
    return pauses, each_s


@asynccontextmanager
async def _streams(client: httpx.AsyncClient, note: Callable[[float], None]) -> AsyncIterator[None]:
    """All of them answer, from their first tokens on until the context ends."""
    begun = [asyncio.Event() for _ in range(STREAMS)]
    tasks = [asyncio.create_task(_stream(client, at, event, note)) for at, event in enumerate(begun)]
    try:
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), TIMEOUT_S)
        yield
        for task in tasks:
            if task.done():
                task.result()
                raise NotLoaded("a stream ended before the last adapter was unloaded")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stream(client: httpx.AsyncClient, at: int, begun: asyncio.Event, note: Callable[[float], None]) -> None:
    prompt = [100 + at] * 32
    asked = {"model": "loading", "prompt": prompt, "max_tokens": ANSWER_TOKENS, "ignore_eos": True, "stream": True, "temperature": 0}
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        if answer.status_code != 200:
            raise NotLoaded(f"{answer.status_code}: {(await answer.aread())[:300]!r}")
        last_s = 0.0
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now_s = time.monotonic()
            if begun.is_set():
                note(now_s - last_s)
            last_s = now_s
            begun.set()
