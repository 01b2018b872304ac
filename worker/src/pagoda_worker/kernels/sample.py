"""Chooses each row's token: top-k, top-p and min-p filters without a sort, then Gumbel-max. One program per row.

Means exactly what sampler.py means: equal logits at a threshold all stay, and the noise of a token is the same hash of (row key, token id).
Called by whoever samples on CUDA; the row's key is sampler.py's.

A threshold is found by bisection over the bits of a float32, eight parts at a time (11 passes over the row, most from the L2): the k-th
largest logit is the largest t with k logits ≥ t; top-p's is the largest t at which what is ≥ t still has the mass p.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
BROKEN = -1
"""Instead of a token id: the row's logits are not finite."""
PARTS = 8


@triton.jit
def _mix(x):
    """The finalizer of MurmurHash3 (32 bits) on uint32."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _order(x):
    """float32 → int64 from 0 to 2^32 - 1, in the same order. Adding 0 makes -0 and 0 one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, ~bits, bits | -2147483648).to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def _scaled(logits, row, at, stride, temperature, VOCAB: tl.constexpr):
    x = tl.load(logits + row * stride + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)
    return tl.math.div_rn(x, temperature + tl.zeros_like(x))


@triton.jit
def _bisect(
    logits, row, stride, temperature, low, high, floor, peak, goal,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, COUNTED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The largest t in [low, high) where the logits of order ≥ t, of those ≥ floor, number (COUNTED) or weigh at least `goal`. It holds at
    low."""
    steps = tl.arange(0, PARTS)
    while high - low > 1:
        pivots = low + ((high - low) * (steps + 1)) // PARTS  # the last is high, where it does not hold
        reached = tl.zeros([PARTS], tl.float32)
        for start in range(0, VOCAB, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = _scaled(logits, row, at, stride, temperature, VOCAB)
            key = _order(x)
            weight = tl.where((at < VOCAB) & (key >= floor), 1.0 if COUNTED else tl.exp(x - peak), 0.0)
            reached += tl.sum(tl.where(key[None, :] >= pivots[:, None], weight[None, :], 0.0), axis=1)
        holds = (reached >= goal) & (pivots < high) & (pivots > low)
        new_low = tl.maximum(low, tl.max(tl.where(holds, pivots, low), axis=0))
        high = tl.min(tl.where((pivots > new_low) & ~holds, pivots, high), axis=0)
        low = new_low
    return low


@triton.jit
def sample_kernel(
    logits, temperatures, top_ks, top_ps, log_min_ps, keys, out, stride,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    asked = tl.load(temperatures + row)
    temperature = tl.where(asked > 0, asked, 1.0)
    top_k, top_p, log_min_p, row_key = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(log_min_ps + row), tl.load(keys + row)

    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    strange = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        x = _scaled(logits, row, start + tl.arange(0, BLOCK), stride, temperature, VOCAB)
        strange |= (x != x).to(tl.int32)
        highest = tl.maximum(highest, x)
    peak = tl.max(highest, axis=0)
    finite = (tl.max(strange, axis=0) == 0) & (peak > float("-inf")) & (peak < float("inf"))

    floor = tl.zeros([], tl.int64)
    if finite & (asked > 0):
        above = _order(peak) + 1
        if (top_k > 0) & (top_k < VOCAB):
            floor = _bisect(logits, row, stride, temperature, floor, above, floor, peak, top_k.to(tl.float32), VOCAB, BLOCK, True, PARTS)
        if top_p < 1.0:
            mass = tl.zeros([BLOCK], tl.float32)
            for start in range(0, VOCAB, BLOCK):
                x = _scaled(logits, row, start + tl.arange(0, BLOCK), stride, temperature, VOCAB)
                mass += tl.where(_order(x) >= floor, tl.exp(x - peak), 0.0)
            goal = top_p * tl.sum(mass, axis=0)
            floor = _bisect(logits, row, stride, temperature, floor, above, floor, peak, goal, VOCAB, BLOCK, False, PARTS)
        floor = tl.maximum(floor, _order(peak + log_min_p))

    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = _scaled(logits, row, at, stride, temperature, VOCAB)
        noisy = x
        if asked > 0:
            bits = _mix(_mix(at.to(tl.uint32)) ^ row_key.to(tl.uint32, bitcast=True))
            uniform = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10
            rest = 1.0 - uniform
            # log1p(-u) after Kahan: the rounding of 1 - u is divided out again.
            unsafe = rest == 1.0
            log1p = tl.where(unsafe, -uniform, tl.log(rest) * (uniform / tl.where(unsafe, 1.0, 1.0 - rest)))
            noisy = tl.where(_order(x) >= floor, x - tl.log(-log1p), float("-inf"))
        better = noisy > best
        best, where = tl.where(better, noisy, best), tl.where(better, at, where)
    most = tl.max(best, axis=0)
    token = tl.min(tl.where(best == most, where, 2147483647), axis=0)
    tl.store(out + row, tl.where(finite, token, -1).to(tl.int64))


def choose(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    """logits [S, V] of any float type; float32 temperature (0: the most likely), top_p (1: off), min_p (0: off), int top_k (0: off),
    int32 keys, each [S]. Returns ids [S] int64, BROKEN where a logit is NaN or none is finite."""
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        block = min(BLOCK, triton.next_power_of_2(vocab))
        sample_kernel[(rows,)](
            logits, temperature, top_k, top_p, min_p.log(), keys, out, logits.stride(0),
            VOCAB=vocab, BLOCK=block, PARTS=PARTS, num_warps=16,
        )  # fmt: skip
    return out


def choose_reference(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, keys: Tensor) -> Tensor:
    """The same by sorting each row."""
    random = temperature > 0
    scaled = logits.float() / torch.where(random, temperature, 1.0)[:, None]
    peak = scaled.amax(dim=-1, keepdim=True)
    ordered = scaled.sort(dim=-1, descending=True).values
    k = torch.where(top_k > 0, top_k.clamp(max=scaled.shape[1]), scaled.shape[1]).long()
    threshold = ordered.gather(1, k[:, None] - 1)
    kept = (ordered - peak).exp().masked_fill(ordered < threshold, 0)
    before = (kept.cumsum(dim=-1) - kept) / kept.sum(dim=-1, keepdim=True)
    lowest = ordered.masked_fill(before >= top_p[:, None], float("inf")).amin(dim=-1, keepdim=True)
    threshold = torch.where(top_p[:, None] < 1, torch.maximum(threshold, lowest), threshold)
    threshold = torch.maximum(threshold, peak + min_p.log()[:, None])
    noisy = scaled.masked_fill(scaled < threshold, float("-inf")) + noise(keys, scaled.shape[1])
    ids = torch.where(random, noisy.argmax(dim=-1), scaled.argmax(dim=-1))
    return torch.where(peak[:, 0].isfinite(), ids, BROKEN)


def noise(keys: Tensor, vocab: int) -> Tensor:
    """Gumbel noise [S, V]: sampler.py's `gumbel`, written with numbers of 64 bits."""
    tokens = _mix_reference(torch.arange(vocab, dtype=torch.int64, device=keys.device))
    bits = _mix_reference(tokens ^ (keys.long() & 0xFFFFFFFF)[:, None]) & 0x7FFFFFFF
    return -(-(-((bits.float() + 0.5) * 2.0**-31)).log1p()).log()


def _mix_reference(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & 0xFFFFFFFF
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)
