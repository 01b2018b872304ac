"""`python -m pagoda_worker.gpu_check`: is the engine right and how fast is it on this machine's GPU?

Needs torch, triton, numpy, safetensors and tokenizers only. Writes a random Llama, lets the CPU and the GPU decode the same prompts
greedily in float32 (the tokens must be equal), then times 1 and 32 sequences in bf16 on a larger one. Exit status 1 when tokens differ or
there is no GPU.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.offline import random_prompts, timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    dtype: torch.dtype


TRUTH = Shape(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=512, vocab=2000, dtype=torch.float32)
"""Small enough that the CPU takes seconds."""
TIMED = {
    "full": Shape(hidden=1024, layers=24, heads=16, kv_heads=8, intermediate=4096, vocab=32_000, dtype=torch.bfloat16),
    "small": Shape(hidden=128, layers=2, heads=2, kv_heads=2, intermediate=256, vocab=1000, dtype=torch.bfloat16),
}
TRUTH_PROMPTS, TRUTH_TOKENS = 16, 48
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pagoda_worker.gpu_check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run of the check itself")
    parser.add_argument("--scale", choices=sorted(TIMED), default="full", help="of the model that is timed")
    parser.add_argument("--output", type=Path, default=Path("bench/results/gpu-check.json"))
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: torch sees no CUDA device here; nothing was checked", file=sys.stderr)
        return 1
    result = check(args.device, TIMED[args.scale])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    truth = result["greedy_tokens"]
    print(f"greedy tokens equal the CPU's in float32: {truth['equal']} of {truth['sequences']} sequences")
    for row in result["throughput"]:
        print(f"{row['concurrency']:3} sequences: {row['tokens_per_s']:9.1f} tok/s, first token after {row['ttft_p50_ms']:.1f} ms")
    print(f"wrote {args.output}")
    return 0 if truth["met"] else 1


def check(device: str, shape: Shape) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        write_random_llama(Path(temporary) / "truth", TRUTH)
        write_random_llama(Path(temporary) / "timed", shape)
        truth = compare(Path(temporary) / "truth", device)
        rows = throughput(Path(temporary) / "timed", device, shape.vocab)
    return {
        "command": "make gpu-check",
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "greedy_tokens": truth,
        "throughput": rows,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "seconds": time.monotonic() - began,
    }


def compare(folder: Path, device: str) -> dict[str, Any]:
    """The same prompts of different lengths in one batch on both devices; chunked, so that every kind of step is taken."""
    prompts = [random_prompts(1, 3 + 11 * i, TRUTH.vocab, seed=i)[0] for i in range(TRUTH_PROMPTS)]
    lines = [
        [c.token_ids for c in engine.generate(prompts, max_tokens=TRUTH_TOKENS, ignore_eos=True)]
        for engine in (
            Engine(EngineConfig(model_dir=folder, device=where, dtype="fp32", max_batch_tokens=256, max_running=32))  # type: ignore[arg-type]
            for where in ("cpu", device)
        )
    ]
    equal = sum(ours == theirs for ours, theirs in zip(*lines, strict=True))
    return {"sequences": len(prompts), "tokens": TRUTH_TOKENS, "equal": equal, "met": equal == len(prompts)}


def throughput(folder: Path, device: str, vocab: int) -> list[dict[str, Any]]:
    engine = Engine(EngineConfig(model_dir=folder, device=device, max_running=32, max_model_len=1024))  # type: ignore[arg-type]
    rows = []
    for concurrency in (1, 32):
        for seed in (0, 1):  # the first run warms up
            prompts = random_prompts(concurrency, PROMPT_TOKENS, vocab, seed=2 * concurrency + seed)
            result = timed(engine, prompts, OUTPUT_TOKENS, True)
        rows.append({"concurrency": concurrency, **{name: value for name, value in result.items() if name != "token_ids"}})
    return rows


def write_random_llama(folder: Path, shape: Shape) -> None:
    """An ordinary Hugging Face folder without a tokenizer. The wide initial range keeps the best tokens apart."""
    generator = torch.Generator().manual_seed(0)
    head_dim = 64

    def weight(*size: int) -> torch.Tensor:
        scale = 1.5 * size[-1] ** -0.5
        return torch.randn(*size, generator=generator).mul_(scale).to(shape.dtype)

    tensors = {
        "model.embed_tokens.weight": weight(shape.vocab, shape.hidden) * shape.hidden**0.5,
        "lm_head.weight": weight(shape.vocab, shape.hidden),
        "model.norm.weight": torch.ones(shape.hidden, dtype=shape.dtype),
    }
    for i in range(shape.layers):
        sizes = {
            "self_attn.q_proj": (shape.heads * head_dim, shape.hidden),
            "self_attn.k_proj": (shape.kv_heads * head_dim, shape.hidden),
            "self_attn.v_proj": (shape.kv_heads * head_dim, shape.hidden),
            "self_attn.o_proj": (shape.hidden, shape.heads * head_dim),
            "mlp.gate_proj": (shape.intermediate, shape.hidden),
            "mlp.up_proj": (shape.intermediate, shape.hidden),
            "mlp.down_proj": (shape.hidden, shape.intermediate),
        }
        tensors |= {f"model.layers.{i}.{name}.weight": weight(*size) for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = torch.ones(shape.hidden, dtype=shape.dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    sys.exit(main())
