"""How long a worker's steps take and what fits into it: three profiles, two of them fitted to measured results of our own engine.

    step = base + row × sequences that decode + context token × tokens that those sequences look back at
         + prompt token × prompt tokens + prompt pair × pairs of a prompt's token and one before it

The pairs are what attention costs within prompts: half the square of their length, so that a long one takes longer than its tokens say.

Pure but for reading result files. Called by run.py; worker.py spends the seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.errors import SettingsError
from pagoda_bench.peers.cases import Case
from pagoda_bench.results import FOLDER, read
from pagoda_bench.sim.parameters import Workload

WARM_TOKENS, CHUNK_S = 16, 0.3
"""Of a self-test: its chunk is as long as a step of so few tokens lets expect to take so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    name: str
    source: str
    base_s: float
    row_s: float
    prompt_token_s: float
    context_token_s: float
    prompt_pair_s: float = 0.0
    """0: attention within prompts is left out, or part of the prompt token."""
    kv_tokens: int
    """KV cache of a worker."""
    block_size: int = 16
    max_running: int = 256
    max_batch_tokens: int = 8192
    long_prefill_tokens: int = 2048
    """Prompt tokens of a step in which something decodes: the engine's default on CUDA (256 on CPU)."""

    def step_s(self, rows: int, prompt_tokens: int, context_tokens: int, prompt_pairs: float = 0.0) -> float:
        decode_s = self.base_s + self.row_s * rows + self.context_token_s * context_tokens
        return decode_s + self.prompt_token_s * prompt_tokens + self.prompt_pair_s * prompt_pairs

    def self_test(self) -> tuple[int, float, float]:
        """Tokens and seconds of one chunk of a prompt, and seconds of one sequence's step: what an engine knows of itself before its first
        request (its loading/self_test.py)."""
        tokens = max(1, min(int(WARM_TOKENS * CHUNK_S / self.step_s(0, WARM_TOKENS, 0)), self.max_batch_tokens))
        return tokens, self.step_s(0, tokens, 0, pairs(0, tokens)), self.step_s(1, 0, 1)


def pairs(computed: int, tokens: int) -> float:
    """Of the next `tokens` of a prompt that has `computed` already, with those before them."""
    return tokens * (computed + tokens / 2)


H100_8B = EngineProfile(
    name="h100-8b",
    source="arithmetic, not measured: Llama-3.1-8B in bf16 (16.1 GB of weights, 128 KiB of KV a token) on an H100 SXM (989 TFLOPS dense, "
    "3.35 TB/s, 80 GB by its data sheet), at 45 % of the FLOPS and 70 % of the bandwidth; row: sampling and launches",
    base_s=0.0069,
    row_s=0.00002,
    prompt_token_s=0.000036,
    context_token_s=5.6e-8,
    kv_tokens=400_000,
)


SEVERAL = 8


def measured(model: str, folder: Path = FOLDER) -> EngineProfile:
    """Of `tiny` or `0.45b` on the machine of bench/results. Raises SettingsError where the file lacks them.

    base and row: the line through the steps of 1 and of 8 streams, each what answers took beyond the first token's median; prompt token:
    what the first token of one request alone takes beyond one step, over its prompt. Of 32 streams the figures spread too much. All of it
    through HTTP, so rather too much. Contexts were too short to tell of context tokens: they count as part of a row.
    """
    found = {(row.case, row.metric): row.value for row in read(folder / "peers.json").rows if row.system == "pagoda"}
    try:
        one_s, many_s = (_step_s(found, model, streams) for streams in (1, SEVERAL))
        first_s = found[f"{model} c=1", "ttft_p50_s"]
    except KeyError as error:
        raise SettingsError(f"bench/results/peers.json has no figure {error}: run make bench-peers") from None
    row_s = (many_s - one_s) / (SEVERAL - 1)
    return EngineProfile(
        name=model,
        source="fitted to bench/results/peers.json, our engine on two CPU cores",
        base_s=one_s - row_s,
        row_s=row_s,
        prompt_token_s=max(0.0, first_s - one_s) / Case(model, 1).prompt_tokens,
        context_token_s=0.0,
        kv_tokens=131_072,
        max_batch_tokens=1024,
        long_prefill_tokens=256,
        max_running=32,
    )


def _step_s(found: Mapping[tuple[str, str], float], model: str, streams: int) -> float:
    case = Case(model, streams)
    took_s = case.tokens / found[case.name, "output_tokens_per_s"]
    return (took_s - found[case.name, "ttft_p50_s"]) / (case.output_tokens - 1)


def profile_named(name: str) -> EngineProfile:
    """Raises SettingsError."""
    if name == H100_8B.name:
        return H100_8B
    if name in ("tiny", "0.45b"):
        return measured(name)
    raise SettingsError(f"there is no profile {name!r}; there is: {H100_8B.name}, tiny, 0.45b")


def request_s(profile: EngineProfile, prompt_tokens: float, output_tokens: float) -> float:
    """Of a worker's time that a request of these lengths costs in a full batch, nothing cached."""
    context = prompt_tokens + output_tokens / 2
    rows = max(1.0, min(profile.max_running, profile.kv_tokens / max(1.0, context)))
    token_s = profile.base_s / rows + profile.row_s + profile.context_token_s * context
    return prompt_tokens * profile.prompt_token_s + profile.prompt_pair_s * prompt_tokens**2 / 2 + output_tokens * token_s


def conversations_per_s(workload: Workload, profile: EngineProfile, workers: int, sample: list[list[tuple[int, int]]]) -> float:
    """Arrivals that ask for `workload.load` of the fleet's capacity. `sample`: lengths of the turns of conversations like those to come."""
    each_s = sum(request_s(profile, *lengths) for turns in sample for lengths in turns) / len(sample)
    return workload.load * workers / each_s
