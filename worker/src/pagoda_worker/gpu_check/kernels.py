"""Is each Triton kernel right on this device? Every one beside its torch reference: head sizes, groups, pages, windows, ragged lengths.

Owns the cases and their tolerances. Imports Triton, so run.py imports it only where that is there; on a CPU the kernels run in its
interpreter. Called by the check.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pagoda_worker.gpu_check.cases import attention_case, decode_case, meant_by, stored_as
from pagoda_worker.gpu_check.truth import Check
from pagoda_worker.kernels.copy_blocks import copy_blocks, copy_blocks_reference
from pagoda_worker.kernels.decode_attention import paged_decode, paged_decode_reference
from pagoda_worker.kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from pagoda_worker.kernels.prefill_attention import paged_prefill, paged_prefill_reference
from pagoda_worker.kernels.rotary_cache import HeadNorms, rotate_and_write, rotate_and_write_reference
from pagoda_worker.kernels.sample import choose, choose_reference
from pagoda_worker.kernels.silu import silu_mul, silu_mul_reference
from pagoda_worker.layers.kv_cache import QUANTIZED
from pagoda_worker.layers.rotary import rotary_table

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {FP32: (2e-5, 1e-4), FP16: (2e-3, 4e-3), BF16: (1e-2, 1e-2)}
"""Absolute, relative. 16 bits: probabilities are rounded before they weigh values, and the result once more."""
NEAR = {FP32: (1e-5, 1e-5), FP16: (1e-5, 2**-9), BF16: (1e-5, 2**-6)}
"""Of norms and gates, which round once; that may fall to the other side."""
TURNED = {FP32: 1e-5, FP16: 4e-3, BF16: 4e-2}
"""Absolute, of rotated heads: a sum of two products that nearly cancel keeps their rounding."""
ONE_STEP = {"int8": (0.1, 0.01), "fp8": (1e-3, 0.14)}
"""Of a quantized row of magnitudes below 12 that a last digit turned the other way before it was rounded."""
SAME_IDS = 0.99
"""Of sampled rows: kernel and reference add up masses in another order, so a threshold may pass on either side of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    dim: int = 128
    group: int = 4
    page: int = 16
    window: int | None = None
    dtype: torch.dtype = BF16
    kv: str | None = None
    """How a quantized cache keeps keys and values."""

    def stored(self, cache: Tensor) -> Tensor:
        return cache if self.kv is None else stored_as(cache, self.page, QUANTIZED[self.kv])

    def meant(self, cache: Tensor) -> Tensor:
        """As a plain cache, for the references."""
        return cache if self.kv is None else meant_by(cache, self.page)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelScale:
    variants: Sequence[Variant]
    contexts: list[int]
    """Of decode rows; 0 is padding."""
    chunks: list[tuple[int, int]]
    """(prefix, count)."""
    widths: Sequence[int]
    """Of norms and gates."""
    vocab: int
    rows: int
    """That are sampled."""


_BASE = Variant()
_ALONE = [replace(_BASE, dim=dim, dtype=dtype) for dim in (64, 128, 256) for dtype in (BF16, FP32)]
_ALONE += [replace(_BASE, group=group) for group in (1, 2, 8, 16)]
_ALONE += [replace(_BASE, page=64), replace(_BASE, window=1), replace(_BASE, window=100), replace(_BASE, dtype=FP16)]
_QUANTIZED = [replace(_BASE, kv=kv, dtype=dtype) for kv in QUANTIZED for dtype in (BF16, FP16, FP32)]
_QUANTIZED += [Variant(kv=kv, dim=64, group=8, page=32, window=100) for kv in QUANTIZED]
_TOGETHER = [Variant(dim=64, group=16, page=64, window=17), Variant(dim=256, group=1, page=64, window=100, dtype=FP32)]
FULL_KERNELS = KernelScale(
    variants=[*_ALONE, *_QUANTIZED, *_TOGETHER],
    contexts=[0, 1, 16, 65, 150, 1000, 4001],
    chunks=[(0, 300), (33, 118), (5, 1), (4, 0), (0, 1), (1000, 257)],
    widths=[100, 1024, 4096, 14_336],
    vocab=128_256,
    rows=256,
)
# Says that the check works: tests/interpreted asks more of the kernels.
SMALL_KERNELS = KernelScale(
    variants=[
        Variant(dim=64, group=1, page=64, window=17, dtype=FP32),
        Variant(dim=64, group=2),
        *[Variant(dim=64, group=2, dtype=FP32, kv=kv) for kv in QUANTIZED],
    ],
    contexts=[0, 1, 33],
    chunks=[(0, 20), (17, 5), (4, 0), (0, 1)],
    widths=[64, 100],
    vocab=200,
    rows=6,
)


@dataclass(slots=True)
class Worst:
    """The largest difference over all cases, as a share of what is allowed there. NaN counts as infinite."""

    share: float = 0.0
    where: str = "nothing"
    cases: int = 0

    def add(self, where: object, ours: Tensor, theirs: Tensor, tolerance: tuple[float, float]) -> None:
        absolute, relative = tolerance
        wide = theirs.float()
        over = (ours.float() - wide).abs() / (absolute + relative * wide.abs())
        over = torch.where((ours == theirs) | (ours.isnan() & theirs.isnan()), 0.0, over).nan_to_num(float("inf"))
        share = float(over.max()) if over.numel() else 0.0
        self.cases += 1
        if share > self.share:
            self.share, self.where = share, str(where)

    def check(self, name: str) -> Check:
        return Check(f"kernel {name}", self.share <= 1, f"{self.cases} cases, at most {self.share:.2f} of the tolerance ({self.where})")


@dataclass(slots=True)
class KernelTrial:
    scale: KernelScale
    device: torch.device

    def randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, device=self.device).to(dtype)


def decode_attention(trial: KernelTrial) -> Check:
    """In one part and in four, by turns: each compiles anew on a GPU."""
    worst = Worst()
    for i, v in enumerate(trial.scale.variants):
        query, cache, table, lengths = decode_case(
            trial.scale.contexts, group=v.group, dim=v.dim, page=v.page, dtype=v.dtype, device=trial.device
        )
        cache = v.stored(cache)
        sizes: dict[str, Any] = {"block_size": v.page, "scale": v.dim**-0.5, "window": v.window}
        theirs = paged_decode_reference(query, v.meant(cache), table, lengths, **sizes)
        for splits in (1, 4) if i == 0 else (4,) if i % 2 else (1,):
            ours = paged_decode(query, cache, table, lengths, splits=splits, **sizes)
            worst.add((v, f"splits={splits}"), ours, theirs, TOLERANCE[v.dtype])
    return worst.check("decode_attention")


def prefill_attention(trial: KernelTrial) -> Check:
    """Behind two decode rows, whose lines of the result stay as they are."""
    worst = Worst()
    for v in trial.scale.variants:
        query, _, cache, batch = attention_case(
            [9, 3], trial.scale.chunks, heads=2 * v.group, kv_heads=2, dim=v.dim, block=v.page, seed=v.dim, dtype=v.dtype,
            device=trial.device,
        )  # fmt: skip
        ours, theirs = torch.full_like(query, 7.0), torch.full_like(query, 7.0)
        cache, inputs = v.stored(cache), (batch.block_table[2:], batch.query_starts[2:], batch.context_lens[2:])
        paged_prefill(query, cache, *inputs, ours, block_size=v.page, scale=v.dim**-0.5, window=v.window)
        paged_prefill_reference(query, v.meant(cache), *inputs, theirs, block_size=v.page, scale=v.dim**-0.5, window=v.window)
        worst.add(v, ours, theirs, TOLERANCE[v.dtype])
    return worst.check("prefill_attention")


def rotary_cache(trial: KernelTrial) -> Check:
    """With norms and without; slot -1 is padding. What nobody writes must stay the same bits."""
    worst, kv_heads = Worst(), 2
    for v in trial.scale.variants:
        table = rotary_table(v.dim, 100, {"rope_theta": 100.0}, max_position=100, dtype=v.dtype, device=trial.device)
        cos, sin = table.at(torch.tensor([0, 3, 50, 99], device=trial.device))
        slots = torch.tensor([5, -1, 0, 31], device=trial.device)
        for normed in (False, True):
            weights = trial.randn(2, v.dim, dtype=v.dtype)
            norms = HeadNorms(weights[0], weights[1], 1e-6) if normed else None
            heads, cache = (
                trial.randn(4, (v.group + 2) * kv_heads, v.dim, dtype=v.dtype),
                trial.randn(2, kv_heads, 2 * v.page, v.dim, dtype=v.dtype),
            )
            other_heads, other_cache, cache = heads.clone(), cache.clone(), v.stored(cache)
            rotate_and_write(heads, cos, sin, cache, slots, block_size=v.page, norms=norms)
            rotate_and_write_reference(other_heads, cos, sin, other_cache, slots, norms=norms)
            cache, other_cache = v.meant(cache), v.meant(v.stored(other_cache))
            near = (TURNED[v.dtype], NEAR[v.dtype][1])
            queries = v.group * kv_heads
            worst.add((v, normed, "queries"), heads[:, :queries], other_heads[:, :queries], near)
            worst.add((v, normed, "cache"), cache, other_cache, near if v.kv is None else ONE_STEP[v.kv])
    return worst.check("rotary_cache")


def norm(trial: KernelTrial) -> Check:
    worst = Worst()
    for width in trial.scale.widths:
        for dtype in (FP32, FP16, BF16):
            x, weight = 30 * trial.randn(5, width + 8, dtype=dtype)[:, :width], trial.randn(width, dtype=dtype)
            worst.add((width, dtype), rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5), NEAR[dtype])
            ours = trial.randn(5, width, dtype=dtype)
            theirs = ours.clone()
            normed, expected = add_rms_norm(x, ours, weight, 1e-5), add_rms_norm_reference(x, theirs, weight, 1e-5)
            worst.add((width, dtype, "norm of the sum"), normed, expected, (NEAR[dtype][0], 2 * NEAR[dtype][1]))
            worst.add((width, dtype, "sum"), ours, theirs, NEAR[dtype])
    return worst.check("norm")


def silu(trial: KernelTrial) -> Check:
    worst = Worst()
    for width in trial.scale.widths:
        for dtype in (FP32, FP16, BF16):
            gate_up = 8 * trial.randn(3, 2 * width, dtype=dtype)
            worst.add((width, dtype), silu_mul(gate_up), silu_mul_reference(gate_up), NEAR[dtype])
    return worst.check("silu")


def sample(trial: KernelTrial) -> Check:
    """Greedy, plain and with each filter alone and all together."""
    rows, device = trial.scale.rows, trial.device
    kinds = torch.arange(rows, device=device) % 6
    off, on = torch.zeros(rows, device=device), torch.ones(rows, device=device)
    temperature = torch.where(kinds == 0, off, 0.7 + 0.1 * kinds)
    top_k = torch.where((kinds == 2) | (kinds == 5), 20, 0).int()
    top_p = torch.where((kinds == 3) | (kinds == 5), 0.9 * on, on)
    min_p = torch.where((kinds == 4) | (kinds == 5), 0.05 * on, off)
    keys = torch.randint(-(2**31), 2**31 - 1, (rows,), dtype=torch.int32, device=device)
    inputs = (3 * trial.randn(rows, trial.scale.vocab, dtype=FP32), temperature, top_k, top_p, min_p, keys)
    equal = int((choose(*inputs) == choose_reference(*inputs)).sum())
    return Check("kernel sample", equal >= SAME_IDS * rows, f"{equal} of {rows} rows have the reference's token")


def copy(trial: KernelTrial) -> Check:
    """Within a cache, to memory of the host and back; bytes are what a quantized one is moved as. Bits must be the same."""
    equal, cases, device = 0, 0, trial.device
    for dtype in (FP32, BF16, torch.uint8):
        for page in (16, 64):
            size = page * (66 if dtype == torch.uint8 else 64)
            cache, host = (100 * torch.rand(4, 6, size, device=device)).to(dtype), torch.zeros(3, 4, size, dtype=dtype)
            host = (host.pin_memory() if device.type == "cuda" else host).transpose(0, 1)  # a slot's heads together, as in host_memory.py
            expected, swapped = cache.clone(), torch.zeros_like(host, device=device)
            _copy(copy_blocks, cache, host, device)
            _copy(copy_blocks_reference, expected, swapped, device)
            equal += torch.equal(cache, expected) and torch.equal(host.to(device), swapped)
            cases += 1
    return Check("kernel copy_blocks", equal == cases, f"{equal} of {cases} cases the same bits")


def _copy(copies: Callable[..., None], cache: Tensor, host: Tensor, device: torch.device) -> None:
    def at(*blocks: int) -> Tensor:
        return torch.tensor(blocks, device=device)

    copies(cache, cache, at(0, 3), at(5, 1))
    copies(cache, host, at(4, 5), at(2, 0))
    copies(host, cache, at(2), at(3))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


KERNEL_CHECKS: tuple[Callable[[KernelTrial], Check], ...] = (
    decode_attention,
    prefill_attention,
    rotary_cache,
    norm,
    silu,
    sample,
    copy,
)
