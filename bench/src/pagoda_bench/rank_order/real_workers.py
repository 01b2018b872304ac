"""Two real workers of one core each behind a real router, as `pagoda up` starts them, asked what simulated users ask in a shorter form.

The model is large enough that its engines take the time of a request, and the batch small enough that requests queue. How fast the workers
are is measured first, in the same run and both at once, since they share this machine's cores with the router: the simulator then gets
workers like these. Called by compare.py.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random
from statistics import median

import httpx

from pagoda_bench.errors import BenchError
from pagoda_bench.local_stack import LocalStack, local_stack
from pagoda_bench.random_llama import write_tenth_billion
from pagoda_bench.rank_order.asking import Answer, Ask, ask_all
from pagoda_bench.rank_order.prompts import FIRST_ID, IDS, prompt_of
from pagoda_bench.sim.demand import Conversation, Turn
from pagoda_bench.sim.engine_profile import EngineProfile
from pagoda_bench.sim.run import first_turns

WORKERS = 2
MODEL = "real"
MAX_RUNNING = 16
MAX_BATCH_TOKENS, LONG_PREFILL_TOKENS = 1024, 256
SHORTER = {"mixed": (4, 8), "shared-prefix": (8, 8)}
"""Times that prompts and answers are shorter than the workload's: so that a request takes these cores half a second and prompts still take
most of it, as on the workload's own machines."""
TENANTS = 38
"""A worker has as many as in the study, where 8 workers have 150."""
MOST_TOKENS = 4000
"""Of a prompt and its answer: what the model takes."""
ROUNDS = 2
PROBE_TOKENS, PROBE_OUTPUT, LONG_TOKENS, LONGEST_TOKENS = 32, 16, 1024, 3072
"""The long one fits into one step, the longest into three."""
MANIFEST = """apiVersion: pagoda.dev/v1alpha1
kind: InferenceModel
metadata: {{name: {model}}}
spec:
  model: {{source: "file://{folder}"}}
  engine:
    {{maxModelLen: 4096, maxRunning: {running}, maxBatchTokens: {batch}, longPrefillTokens: {prefill}, kvCache: {{blockSize: {block}}}}}
  resources: {{cpu: "1", memory: 3Gi}}
  scaling: {{min: 2, max: 2}}
  routing: {{policy: {policy}}}
"""
BLOCK_SIZE = 16
APART_IDS = 2 * IDS
ADOPTED_WITHIN_S = 20.0


def stack(policy: str, folder: Path) -> AbstractContextManager[LocalStack]:
    write_tenth_billion(folder / "model")
    return local_stack(_manifest(policy, folder), extra_env={"PAGODA_DEVICE": "cpu"})


def route_by(policy: str, running: LocalStack, folder: Path) -> None:
    """From now on, with the same workers. Raises BenchError."""
    running.pagoda("up", "--port", str(running.port), str(_manifest(policy, folder)))
    deadline_s = time.monotonic() + ADOPTED_WITHIN_S
    while time.monotonic() < deadline_s:
        httpx.post(
            f"{running.url}/v1/completions", json={"model": MODEL, "prompt": [FIRST_ID], "max_tokens": 1}, timeout=30
        ).raise_for_status()
        told = httpx.get(f"{running.url}/admin/v1/decisions", params={"limit": 1}, timeout=30).raise_for_status().json()
        if [decision["policy"] for decision in told["decisions"]] == [policy]:
            return
        time.sleep(0.1)
    raise BenchError(f"the router did not begin to route by {policy}")


def _manifest(policy: str, folder: Path) -> Path:
    weights, manifest = folder / "model", folder / f"{policy}.yaml"
    manifest.write_text(
        MANIFEST.format(
            model=MODEL,
            folder=weights,
            policy=policy,
            running=MAX_RUNNING,
            batch=MAX_BATCH_TOKENS,
            prefill=LONG_PREFILL_TOKENS,
            block=BLOCK_SIZE,
        )
    )
    return manifest


def users_of(workload: str, profile: EngineProfile, duration_s: float, seed: int) -> list[Conversation]:
    prompts, answers = SHORTER[workload]
    return first_turns(
        workload, profile, WORKERS, duration_s, seed, shape=lambda user: _shorter(user, prompts, answers), most_tenants=TENANTS
    )


def _shorter(user: Conversation, prompts: int, answers: int) -> Conversation:
    """Its first turn, at most as long as the model takes. Blocks stay whole, so that what is shared stays shared."""
    size, turn = user.block_size, user.turns[0]
    prefix_tokens = user.prefix_tokens // (prompts * size) * size
    own = max(2, (turn.prompt_tokens - user.prefix_tokens) // prompts)
    output_tokens = max(2, turn.output_tokens // answers)
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


async def ask(running: LocalStack, users: Sequence[Conversation], run: int) -> list[Answer]:
    """`run`: a number of its own, which keeps its prompts apart from those that earlier runs left in the caches."""
    asks = [_completion(user.at_s, [token + run * APART_IDS for token in prompt_of(user)], user.turns[0].output_tokens) for user in users]
    return await ask_all(running.url, asks, whole=False)


async def measure(running: LocalStack) -> EngineProfile:
    """Of each worker while both work, by the medians of a few rounds; its policy has to spread requests evenly. Raises BenchError.

    base and row: the line through the steps of one sequence and of a full batch; context token: what the steps of a full batch take more
    behind long prompts; prompt token and pair: the parabola through the first tokens of a short, a long and the longest prompt.
    """
    rng, found = Random(0), []
    for _ in range(ROUNDS + 1):
        one_s = await _step_s(running, WORKERS, PROBE_TOKENS, rng)
        many_s = await _step_s(running, WORKERS * MAX_RUNNING, PROBE_TOKENS, rng)
        context_s = await _step_s(running, WORKERS * MAX_RUNNING, LONG_TOKENS, rng)
        firsts_s = [await _first_s(running, tokens, rng) for tokens in (PROBE_TOKENS, LONG_TOKENS, LONGEST_TOKENS)]
        found.append((one_s, many_s, context_s, *firsts_s))
    one_s, many_s, context_s, short_s, long_s, longest_s = (median(values) for values in zip(*found[1:], strict=True))  # the first warms up
    row_s = max(1e-6, (many_s - one_s) / (MAX_RUNNING - 1))
    base_s = max(1e-4, one_s - row_s)
    steps = LONGEST_TOKENS // MAX_BATCH_TOKENS - LONG_TOKENS // MAX_BATCH_TOKENS  # more of them, each with its base
    prompt_token_s, prompt_pair_s = prompt_costs(long_s - short_s, longest_s - short_s - steps * base_s)
    return EngineProfile(
        name="0.1B, two workers of one core each",
        source="measured in this run",
        base_s=base_s,
        row_s=row_s,
        prompt_token_s=prompt_token_s,
        prompt_pair_s=prompt_pair_s,
        context_token_s=max(0.0, (context_s - many_s) / (MAX_RUNNING * (LONG_TOKENS - PROBE_TOKENS))),
        kv_tokens=_kv_tokens(running),
        block_size=BLOCK_SIZE,
        max_running=MAX_RUNNING,
        max_batch_tokens=MAX_BATCH_TOKENS,
        long_prefill_tokens=LONG_PREFILL_TOKENS,
    )


def prompt_costs(long_s: float, longest_s: float) -> tuple[float, float]:
    """Of a token, and of a pair of one and an earlier one: from how much longer a long and the longest prompt take than a short one."""
    (tokens, pairs), (more_tokens, more_pairs) = (
        (length - PROBE_TOKENS, (length**2 - PROBE_TOKENS**2) / 2) for length in (LONG_TOKENS, LONGEST_TOKENS)
    )
    pair_s = max(0.0, (longest_s * tokens - long_s * more_tokens) / (more_pairs * tokens - pairs * more_tokens))
    return max(1e-6, (long_s - pair_s * pairs) / tokens), pair_s


def _kv_tokens(running: LocalStack) -> int:
    """Of one worker, as it tells."""
    told = httpx.get(f"{running.url}/admin/v1/fleet", timeout=30).raise_for_status().json()
    return min(int(worker["kvCapacityTokens"]) for worker in told["workers"])


async def _step_s(running: LocalStack, streams: int, prompt_tokens: int, rng: Random) -> float:
    """All with one prompt that each worker has in its cache, so that they begin together and nothing but decoding is timed."""
    prompt = _random_prompt(prompt_tokens, rng)
    await _at_once(running, [prompt] * WORKERS, 2)
    answers = await _at_once(running, [prompt] * streams, PROBE_OUTPUT)
    return median((answer.ended_s or 0.0) - (answer.first_s or 0.0) for answer in answers) / (PROBE_OUTPUT - 1)


async def _first_s(running: LocalStack, prompt_tokens: int, rng: Random) -> float:
    answers = await _at_once(running, [_random_prompt(prompt_tokens, rng) for _ in range(WORKERS)], 2)
    return median(answer.first_s or 0.0 for answer in answers)


def _random_prompt(tokens: int, rng: Random) -> list[int]:
    """That nobody had before."""
    return [rng.randrange(FIRST_ID, FIRST_ID + IDS) for _ in range(tokens)]


async def _at_once(running: LocalStack, prompts: Sequence[Sequence[int]], output_tokens: int) -> list[Answer]:
    answers = await ask_all(running.url, [_completion(0.0, prompt, output_tokens) for prompt in prompts])
    if failed := [answer.failure for answer in answers if answer.failure]:
        raise BenchError(f"the workers cannot be measured: {failed[0]}")
    return answers


def _completion(at_s: float, prompt_ids: Sequence[int], output_tokens: int) -> Ask:
    return Ask.completion(at_s, prompt_ids, model=MODEL, max_tokens=output_tokens, ignore_eos=True)
