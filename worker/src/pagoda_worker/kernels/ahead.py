"""Compiles kernels for GPUs that are not here, and says what they take of one: `python -m pagoda_worker.kernels.ahead` writes the table of
docs/kernels.md.

Owns the list of configurations that the engine uses for Llama-3.1-8B (8 key/value heads, groups of 4) and Qwen3-0.6B (groups of 2) in bf16,
and for the small float32 model of `make gpu-check`. Called by that command and a test. Registers and spills are what ptxas -v prints;
shared memory is Triton's.
"""

import contextlib
import io
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pagoda_worker.kernels import copy_blocks, decode_attention, norm, prefill_attention, rotary_cache, sample, silu
from pagoda_worker.kernels.ahead_products import product_builds
from pagoda_worker.kernels.build import Build
from pagoda_worker.kernels.launch import power_of_two

FP8_CAPABILITY = 89
SHARED_LIMITS = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that one program may have, by compute capability."""
ALIGNED = frozenset({"inputs", "outputs", "share"})
"""Sizes of products, which are multiples of 16 in every model, beside all strides."""
MARKS = ("<!-- kernels: begin -->\n", "<!-- kernels: end -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    name: str
    capability: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    matrix: str
    """The matrix instruction: wgmma, mma, or none."""


def attention_builds(label: str, *, dim: int, kv_heads: int, group: int, dtype: str, cache: str | None = None) -> list[Build]:
    """`cache`: what a quantized one holds."""
    size = 4 if dtype == "fp32" else 2
    values = dict.fromkeys(("query", "out"), f"*{dtype}") | {"cache": f"*{cache or dtype}", "scales": "*bf16"}
    indices = dict.fromkeys(("table", "starts", "lengths"), "*i32")
    numbers = {"scale": "fp32", "sequences": "i32", "query_stride": "i32", "table_stride": "i32", "head_stride": "i32"}
    types = values | indices | numbers | dict.fromkeys(("shares", "peaks", "sums"), "*fp32")
    shape = {"KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": dim, "PAGE": 16, "WINDOW": 0, "UPCAST": False, "SCALED": cache is not None}
    decode = decode_attention.decode_tile(dim, group, size)
    prefill = prefill_attention.prefill_tile(dim, group, size, scaled=cache is not None)

    def build(name: str, kernel: Any, tile: Any, **more: int) -> Build:
        blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_D": tile.block_d}
        constants = shape | blocks | more
        return Build(name=f"{name} {label}", kernel=kernel, types=types, constants=constants, warps=tile.warps, stages=tile.stages)

    join = {"HEAD_DIM": dim, "SPLITS": 8, "BLOCK_D": decode.block_d}
    both = [build("decode", decode_attention.decode_kernel, decode, SPLITS=8), build("prefill", prefill_attention.prefill_kernel, prefill)]
    if cache is not None:
        return both
    return [both[0], Build(name=f"decode join {label}", kernel=decode_attention.join_kernel, types=types, constants=join, warps=4), both[1]]


def builds() -> list[Build]:
    bf16 = dict.fromkeys(
        ("x", "residual", "weight", "out", "gate_up", "heads", "cos", "sin", "cache", "scales", "query_norm", "key_norm"), "*bf16"
    )
    numbers = dict.fromkeys(("stride", "token_stride", "cos_stride", "slot_stride", "head_stride"), "i32")
    numbers |= {f"{of}_{what}_stride": "i32" for of in ("source", "target") for what in ("head", "block")}
    common = bf16 | numbers | {"eps": "fp32", "slots": "*i64", "source": "*bf16", "target": "*bf16", "sources": "*i64", "targets": "*i64"}
    sampled = dict.fromkeys(("temperatures", "top_ps", "log_min_ps"), "*fp32") | {"top_ks": "*i32", "keys": "*i32", "out": "*i64"}
    heads: dict[str, Any] = {"HEADS": 16, "KV_HEADS": 8, "HEAD_DIM": 128, "ROTATED": True, "NORMED": True, "PAGE": 16}
    heads |= {"LARGEST": 0.0, "BLOCK_H": rotary_cache.HEADS_PER_PROGRAM, "BLOCK_D": 64}
    add = {"WIDTH": 4096, "BLOCK": power_of_two(4096), "ADDED": True}
    return [
        *attention_builds("Llama-3.1-8B", dim=128, kv_heads=8, group=4, dtype="bf16"),
        *attention_builds("Qwen3-0.6B", dim=128, kv_heads=8, group=2, dtype="bf16"),
        *attention_builds("float32, heads of 64", dim=64, kv_heads=2, group=2, dtype="fp32"),
        Build(name="norm of a sum, 4096", kernel=norm.norm_kernel, types=common, constants=add, warps=norm.warps(4096)),
        Build(name="silu", kernel=silu.silu_kernel, types=common, constants={"WIDTH": 14_336, "BLOCK": silu.BLOCK}, warps=4),
        Build(name="rotary and cache", kernel=rotary_cache.rotary_cache_kernel, types=common, constants=heads, warps=4),
        Build(
            name="sample 128256",
            kernel=sample.sample_kernel,
            types=sampled | {"logits": "*bf16", "stride": "i32"},
            constants={"VOCAB": 128_256, "BLOCK": sample.BLOCK, "PARTS": sample.PARTS},
            warps=16,
        ),
        Build(name="copy", kernel=copy_blocks.copy_kernel, types=common, constants={"SIZE": 2048, "BLOCK": copy_blocks.BLOCK}, warps=4),
        *(
            replace(each, least_capability=least)
            for name, cache, largest, least in (("int8", "i8", 127.0, 0), ("fp8", "fp8e4nv", 448.0, FP8_CAPABILITY))
            for each in (
                *attention_builds(f"Llama-3.1-8B, KV {name}", dim=128, kv_heads=8, group=4, dtype="bf16", cache=cache),
                Build(
                    name=f"rotary and cache, KV {name}",
                    kernel=rotary_cache.rotary_cache_kernel,
                    types=common | {"cache": f"*{cache}"},
                    constants=heads | {"LARGEST": largest},
                    warps=4,
                ),
            )
        ),
        *product_builds(),
    ]


def capabilities(build: Build) -> list[int]:
    return [each for each in SHARED_LIMITS if each >= build.least_capability]


def compile_for(build: Build, capability: int) -> Compiled:
    """What the just-in-time compiler would make of tensors that lie at multiples of 16 bytes."""
    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.types[name] for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name.endswith("stride") or name in ALIGNED]
    source = ASTSource(
        fn=build.kernel,
        signature=signature,
        constexprs=dict(build.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # what comes from the cache has no ptxas log
        options = {"num_warps": build.warps, "num_stages": build.stages}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = made.asm["ptx"]
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spilled = re.findall(r"(\d+) bytes spill", log.getvalue())
    assert registers, "ptxas said nothing of registers"
    return Compiled(
        name=build.name,
        capability=capability,
        shared_bytes=made.metadata.shared,
        registers=int(registers[1]),
        spilled_bytes=sum(map(int, spilled)),
        matrix="wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else "none",
    )


def table(results: list[Compiled]) -> str:
    lines = ["| kernel | GPU | shared memory, bytes | registers a thread | spilled, bytes | matrix instruction |"]
    lines.append("| --- | --- | ---: | ---: | ---: | --- |")
    lines += [f"| {r.name} | sm_{r.capability} | {r.shared_bytes} | {r.registers} | {r.spilled_bytes} | {r.matrix} |" for r in results]
    return "\n".join(lines) + "\n"


def main(path: Path) -> None:
    before, rest = path.read_text().split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    results = [compile_for(build, capability) for build in builds() for capability in capabilities(build)]
    path.write_text(before + MARKS[0] + table(results) + MARKS[1] + after)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/kernels.md"))
