"""Two real tiny workers behind a real router, as `pagoda up` starts them, asked what simulated users ask at a sixteenth of its length.

How fast they are is measured first, in the same run and both at once, since they share this machine's cores with the router and whoever
else computes: the simulator then gets workers like these. Called by compare.py.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import median

from pagoda_bench.errors import BenchError
from pagoda_bench.local_stack import LocalStack, local_stack
from pagoda_bench.rank_order.asking import Answer, Ask, ask_all
from pagoda_bench.rank_order.prompts import FIRST_ID, IDS, prompt_of
from pagoda_bench.sim.demand import Conversation, Turn
from pagoda_bench.sim.engine_profile import SEVERAL, EngineProfile, measured

WORKERS = 2
SHORTER = 16
"""Times, than the workload's prompts and answers."""
MOST_TOKENS = 2000
"""Of a prompt and its answer: what the tiny model takes."""
ROUNDS = 3
PROBE_TOKENS, PROBE_OUTPUT, LONG_TOKENS = 32, 64, 1024
MANIFEST = """apiVersion: pagoda.dev/v1alpha1
kind: InferenceModel
metadata: {name: tiny}
spec:
  model: {source: builtin://tiny}
  engine: {maxModelLen: 2048}
  resources: {cpu: 500m, memory: 2Gi}
  scaling: {min: 2, max: 2}
  routing: {policy: %s}
"""


def stack(policy: str, folder: Path) -> AbstractContextManager[LocalStack]:
    manifest = folder / f"{policy}.yaml"
    manifest.write_text(MANIFEST % policy)
    return local_stack(manifest, extra_env={"PAGODA_DEVICE": "cpu"})


def shorter(user: Conversation) -> Conversation:
    """Its first turn, at most as long as the tiny model takes. Blocks stay whole, so that what is shared stays shared."""
    size, turn = user.block_size, user.turns[0]
    prefix_tokens = user.prefix_tokens // (SHORTER * size) * size
    own = max(2, (turn.prompt_tokens - user.prefix_tokens) // SHORTER)
    output_tokens = max(2, turn.output_tokens // SHORTER)
    prompt_tokens = min(prefix_tokens + own, MOST_TOKENS - output_tokens)
    return Conversation(
        user.id,
        user.at_s,
        user.tenant,
        prefix_tokens,
        (Turn(prompt_tokens, output_tokens, 0.0),),
        size,
        user.prefix_hashes[: prefix_tokens // size],
    )


async def ask(running: LocalStack, users: Sequence[Conversation]) -> list[Answer]:
    asks = [_completion(user.at_s, prompt_of(user), user.turns[0].output_tokens) for user in users]
    return await ask_all(running.url, asks, whole=False)


async def measure(running: LocalStack) -> EngineProfile:
    """Of each worker while both work, by the medians of a few rounds; its policy has to spread requests evenly. As engine_profile.measured
    does it for one alone. Raises BenchError."""
    rng, found = Random(0), []
    for _ in range(ROUNDS + 1):
        one_s = await _step_s(running, WORKERS, rng)
        many_s = await _step_s(running, WORKERS * SEVERAL, rng)
        long_s = await _first_s(running, LONG_TOKENS, rng)
        short_s = await _first_s(running, PROBE_TOKENS, rng)
        found.append((one_s, many_s, max(1e-6, (long_s - short_s) / (LONG_TOKENS - PROBE_TOKENS))))
    one_s, many_s, prompt_token_s = (median(values) for values in zip(*found[1:], strict=True))  # the first round warms up
    row_s = max(1e-6, (many_s - one_s) / (SEVERAL - 1))
    return replace(
        measured("tiny"),
        name="tiny, two beside each other",
        source="measured in this run",
        base_s=max(1e-4, one_s - row_s),
        row_s=row_s,
        prompt_token_s=prompt_token_s,
    )


async def _step_s(running: LocalStack, streams: int, rng: Random) -> float:
    answers = await _at_once(running, streams, PROBE_TOKENS, PROBE_OUTPUT, rng)
    return median((answer.ended_s or 0.0) - (answer.first_s or 0.0) for answer in answers) / (PROBE_OUTPUT - 1)


async def _first_s(running: LocalStack, prompt_tokens: int, rng: Random) -> float:
    return median(answer.first_s or 0.0 for answer in await _at_once(running, WORKERS, prompt_tokens, 2, rng))


async def _at_once(running: LocalStack, streams: int, prompt_tokens: int, output_tokens: int, rng: Random) -> list[Answer]:
    """With prompts that nobody had before."""
    prompts = [[rng.randrange(FIRST_ID, FIRST_ID + IDS) for _ in range(prompt_tokens)] for _ in range(streams)]
    answers = await ask_all(running.url, [_completion(0.0, prompt, output_tokens) for prompt in prompts])
    if failed := [answer.failure for answer in answers if answer.failure]:
        raise BenchError(f"the tiny workers cannot be measured: {failed[0]}")
    return answers


def _completion(at_s: float, prompt_ids: Sequence[int], output_tokens: int) -> Ask:
    return Ask.completion(at_s, prompt_ids, model="tiny", max_tokens=output_tokens, ignore_eos=True)
