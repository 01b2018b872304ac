"""How products of quantized weights and adapters are compiled for Llama-3.1-8B on an H200: their part of the list of `ahead.py`."""

from typing import Any

from pagoda_worker.kernels import adapter_deltas, few_rows, int8_product, packed_weight, product_tiles, quantize_rows, weight_only
from pagoda_worker.kernels.build import Build
from pagoda_worker.kernels.launch import power_of_two

PROCESSORS = 132
SIZES = dict.fromkeys(("rows", "outputs", "inputs", "share", "chunks", "n_scales", "first", "stop", "stride", "end_0", "end_1"), "i32")
FLOATS = dict.fromkeys(("scales", "row_scales", "output_scales", "partial", "shrunk"), "*fp32")
HALVES = dict.fromkeys(("bias", "a", "b", "y"), "*bf16")
COMMON = SIZES | FLOATS | HALVES | {"words": "*i16", "zeros": "*u8", "ranks": "*i32", "slots": "*i32"}


def product_builds() -> list[Build]:
    rows_to_int8 = {"WIDTH": 14_336, "BLOCK": power_of_two(14_336), "SMALLEST": quantize_rows.SMALLEST_SCALE}
    joined = {"SPLITS": 4, "SCALED": False, "BIASED": False, "BLOCK": product_tiles.JOIN_BLOCK}
    copied = {"BITS": 4, "GROUP": 128, "BLOCK": 1, "HAS_ZEROS": True, "CHUNK": packed_weight.CHUNK}
    return [
        _build(
            "rows to int8, 14336", quantize_rows.quantize_kernel, rows_to_int8, warps=quantize_rows.warps(14_336), x="*bf16", values="*i8"
        ),
        _int8(1, 4096, 4096),
        _int8(64, 4096, 14_336),
        _int8(8192, 28_672, 4096),
        _weight_only("W4A16", 1, 4096, 4096),
        _weight_only("W4A16", 64, 4096, 4096),
        _weight_only("W4A16", 256, 28_672, 4096),
        _weight_only("W4A16 groups of 32", 1, 4096, 4096, GROUP=32),
        _weight_only("W8A16", 1, 4096, 4096, BITS=8, GROUP=0, HAS_ZEROS=False),
        _weight_only("W8A16 blocks", 64, 4096, 4096, BITS=8, BLOCK=128, HAS_ZEROS=False),
        _build("join of 4 parts", product_tiles.join_kernel, joined, out="*bf16"),
        _build("int4 to bf16", packed_weight.dequantize_kernel, copied | {"BLOCK_N": packed_weight.DEQUANTIZED_OUTPUTS}, out="*bf16"),
        _few_rows(28_672, 4096, gated=True),
        _few_rows(1024, 3072, gated=False),
        *_adapters(),
    ]


def _build(name: str, kernel: Any, constants: dict[str, Any], *, warps: int = 4, stages: int = 3, **types: str) -> Build:
    return Build(name=name, kernel=kernel, types=COMMON | types, constants=constants, warps=warps, stages=stages)


def _int8(rows: int, outputs: int, inputs: int) -> Build:
    tile = int8_product.int8_tile(rows, outputs, inputs, PROCESSORS)
    constants = {"BLOCK_N": tile.outputs, "BLOCK_M": tile.rows, "BLOCK_K": tile.inputs, "EVEN": True, "BIASED": False}
    constants |= {"SPLIT": tile.splits > 1, "NEIGHBOURS": product_tiles.NEIGHBOURS}
    types = {"x": "*i8", "weight": "*i8", "out": "*i32" if tile.splits > 1 else "*bf16"}
    name = f"W8A8 {rows} x {outputs} x {inputs}"
    return _build(name, int8_product.int8_kernel, constants, warps=tile.warps, stages=tile.stages, **types)


def _weight_only(name: str, rows: int, outputs: int, inputs: int, **more: Any) -> Build:
    tile = weight_only.weight_only_tile(rows, outputs, inputs, PROCESSORS, bits=more.get("BITS", 4))
    constants = {"BITS": 4, "GROUP": 128, "BLOCK": 1, "HAS_ZEROS": True, "CHUNK": packed_weight.CHUNK, "EVEN": True, "BIASED": False}
    constants |= {"BLOCK_N": tile.outputs, "BLOCK_M": tile.rows, "SPLIT": tile.splits > 1, "NEIGHBOURS": product_tiles.NEIGHBOURS}
    constants |= {"PAIRED": True, "UPCAST": False, **more}
    types = {"x": "*bf16", "out": "*fp32" if tile.splits > 1 else "*bf16"}
    name = f"{name} {rows} x {outputs} x {inputs}"
    return _build(name, weight_only.weight_only_kernel, constants, warps=tile.warps, stages=tile.stages, **types)


def _few_rows(outputs: int, inputs: int, *, gated: bool) -> Build:
    tile = few_rows.few_rows_tile(outputs // 2 if gated else outputs)
    constants = {"ROWS": 1, "BLOCK_N": tile.outputs, "BLOCK_K": tile.inputs, "EVEN": True, "BIASED": False, "GATED": gated}
    name = f"one row {outputs} x {inputs}{', gated' if gated else ''}"
    return _build(name, few_rows.few_rows_kernel, constants, warps=tile.warps, x="*bf16", weight="*bf16", out="*bf16")


def _adapters() -> list[Build]:
    """Of rank 16 on queries, keys and values together, 32 rows."""
    tile = adapter_deltas.delta_tile(32, 4096, 16)
    common = {"PARTS": 3, "MAX_RANK": 16, "BLOCK_T": tile.tokens, "BLOCK_R": tile.ranks, "UPCAST": False}
    shrink = common | {"SHARE": tile.share, "BLOCK_K": adapter_deltas.BLOCK_INPUTS}
    expand = common | {"SPLITS": tile.splits, "BLOCK_N": adapter_deltas.BLOCK_OUTPUTS}
    return [
        _build("adapters' A", adapter_deltas.shrink_kernel, shrink, x="*bf16"),
        _build("adapters' B", adapter_deltas.expand_kernel, expand),
    ]
