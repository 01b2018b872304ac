"""Output tokens/s at 1, 8 and 32 concurrent streams, the whole stack against transformers' `generate`, in one run.

Pagoda is measured from outside: `pagoda up`, then N streaming /v1/completions requests at once over HTTP, from the first byte sent to the
last token read. transformers gets the same prompts as one static batch of N. Rounds alternate (pagoda, transformers, pagoda, …), each with
prompts of its own so that no prefix cache helps; medians and the ratio of medians are written. Idle, neither side computes.
"""

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pagoda_bench.hardware import read_hardware
from pagoda_bench.local_stack import LocalStack, local_stack
from pagoda_bench.random_llama import write_half_billion

RESULTS = Path(__file__).parents[2] / "results"
CONCURRENCY = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds, output tokens per second."""

    model: str
    concurrency: int
    pagoda_tokens_per_s: float
    transformers_tokens_per_s: float
    ratio: float
    pagoda_ttft_p50_ms: float
    pagoda_rounds: list[float]
    transformers_rounds: list[float]


@dataclass(frozen=True, slots=True)
class StreamTiming:
    ttft_s: float
    tokens: int


def manifest(name: str, source: str) -> str:
    return json.dumps(
        {
            "apiVersion": "pagoda.dev/v1alpha1",
            "kind": "InferenceModel",
            "metadata": {"name": name},
            "spec": {"model": {"source": source}, "engine": {"maxModelLen": 2048}, "scaling": {"min": 1, "max": 1}},
        }
    )


async def one_stream(client: httpx.AsyncClient, model: str, prompt: list[int], output_tokens: int) -> StreamTiming:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    first: float | None = None
    tokens = 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            if first is None:
                first = time.monotonic()
            usage = json.loads(line[6:]).get("usage")
            if usage:
                tokens = usage["completion_tokens"]
    if tokens != output_tokens:
        raise RuntimeError(f"asked for {output_tokens} tokens, got {tokens}")
    assert first is not None
    return StreamTiming(first - began, tokens)


async def pagoda_round(stack: LocalStack, model: str, prompts: Sequence[list[int]], output_tokens: int) -> tuple[float, list[StreamTiming]]:
    """Seconds from the first byte sent to the last token read, and each stream's timing."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        began = time.monotonic()
        timings = await asyncio.gather(*(one_stream(client, model, prompt, output_tokens) for prompt in prompts))
        return time.monotonic() - began, timings


def transformers_round(model: PreTrainedModel, prompts: Sequence[list[int]], output_tokens: int) -> float:
    ids = torch.tensor(prompts)
    began = time.monotonic()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=output_tokens,
            min_new_tokens=output_tokens,
            pad_token_id=0,
        )
    assert out.shape[1] == ids.shape[1] + output_tokens
    return time.monotonic() - began


def measure(
    name: str, folder: Path, source: str, *, prompt_tokens: int, output_tokens: int, rounds: int, concurrency: Sequence[int]
) -> list[Row]:
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    random = np.random.default_rng(0)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.yaml"
        path.write_text(manifest(name, source))
        with local_stack(path) as stack:
            for width in concurrency:
                ours: list[float] = []
                theirs: list[float] = []
                ttfts: list[float] = []
                for counted in (False, *([True] * rounds)):
                    # ids below 200 exist in every vocabulary and are ordinary text
                    prompts = random.integers(10, 200, size=(width, prompt_tokens)).tolist()
                    seconds, timings = asyncio.run(pagoda_round(stack, name, prompts, output_tokens))
                    peer_seconds = transformers_round(peer, prompts, output_tokens)
                    if counted:
                        ours.append(width * output_tokens / seconds)
                        theirs.append(width * output_tokens / peer_seconds)
                        ttfts += [timing.ttft_s for timing in timings]
                mine, peers = statistics.median(ours), statistics.median(theirs)
                rows.append(Row(name, width, mine, peers, mine / peers, statistics.median(ttfts) * 1000, ours, theirs))
                print(
                    f"{name:14} {width:3} streams: pagoda {mine:8.1f} tok/s, transformers {peers:8.1f} tok/s, ratio {mine / peers:.2f}",
                    flush=True,
                )
    return rows


def render(rows: Sequence[Row], hardware_line: str, command: str, details: str) -> str:
    lines = [
        "# Output tokens/s: the whole stack over HTTP against transformers' `generate`",
        "",
        f"`{command}` · {hardware_line} · {details}",
        "",
        "Medians over alternating rounds; every round has prompts of its own. transformers runs one static batch, Pagoda as many",
        "HTTP streams.",
        "",
        "| model | streams | Pagoda tok/s | transformers tok/s | ratio | Pagoda TTFT p50 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.model} | {row.concurrency} | {row.pagoda_tokens_per_s:.1f} | {row.transformers_tokens_per_s:.1f} | {row.ratio:.2f} "
        f"| {row.pagoda_ttft_p50_ms:.0f} ms |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def builtin_tiny() -> Path:
    """The shipped folder, found without importing the worker."""
    spec = find_spec("pagoda_worker")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "builtin" / "tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCY))
    parser.add_argument("--models", nargs="+", choices=["tiny", "llama-0.45b"], default=["tiny", "llama-0.45b"])
    parser.add_argument("--output", type=Path, default=RESULTS / "throughput", help="path without suffix; .json and .md are written")
    args = parser.parse_args()

    hardware = read_hardware(("pagoda-worker", "torch", "transformers"))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for model in args.models:
            folder = builtin_tiny()
            source = "builtin://tiny"
            if model != "tiny":
                folder = Path(temporary) / "llama"
                write_half_billion(folder)
                source = f"file://{folder}"
            sizes = {"prompt_tokens": args.prompt_tokens, "output_tokens": args.output_tokens, "rounds": args.rounds}
            rows += measure(model.replace(".", "-"), folder, source, concurrency=args.concurrency, **sizes)

    command = f"python -m pagoda_bench.throughput {shlex.join(sys.argv[1:])}".rstrip()
    details = f"prompt {args.prompt_tokens}, output {args.output_tokens}, greedy, {args.rounds} rounds, threads {torch.get_num_threads()}"
    packages = ", ".join(f"{name} {version}" for name, version in hardware.packages.items())
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"command": command, "hardware": hardware.as_dict(), "details": details, "rows": [asdict(row) for row in rows]}
    args.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(render(rows, f"{hardware.line()}, {packages}, commit {hardware.commit}", command, details))
    print(f"wrote {args.output.with_suffix('.json')} and .md")


if __name__ == "__main__":
    main()
