"""Which attention is fastest on this device, and how exact is each? One layer of one model, every backend beside float32 `eager`.

Times are of attention alone, keys and values in the cache already; a whole step has more. Called by the check; makes rows of its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda_worker.gpu_check.cases import attention_case
from pagoda_worker.gpu_check.device import median_s
from pagoda_worker.gpu_check.report import Report
from pagoda_worker.gpu_check.truth import Check
from pagoda_worker.layers.attention import BACKENDS, Attend, AttentionBatch, AttentionShape, attend_eager
from pagoda_worker.layers.selection import flash_refusal, torch_has_flash, triton_refusal

LARGEST_ERROR = 2e-2
"""Absolute, in bf16: values are of standard deviation 1, means of them at most a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    block: int = 16
    loads: Sequence[tuple[str, list[int], list[tuple[int, int]]]]
    """(name, contexts of decode rows, (prefix, count) of chunks)."""


FULL_LAYER = Layer(
    loads=(
        ("decode 1 x 8192", [8192], []),
        ("decode 64 x 512", [512] * 64, []),
        ("prefill 1 x 4096", [], [(0, 4096)]),
        ("prefill 4 x 512 behind 2048", [], [(2048, 512)] * 4),
    )
)
"""Llama-3.1-8B's."""
SMALL_LAYER = Layer(heads=4, kv_heads=2, dim=64, loads=(("decode 2 x 40", [40, 40], []), ("prefill 1 x 24 behind 16", [], [(16, 24)])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    backend: str
    load: str
    seconds: float
    largest_error: float


def usable(device: torch.device, head_dim: int, report: Report) -> dict[str, Attend]:
    """The backends that run here; a line for each that does not."""
    found: dict[str, Attend] = {}
    if (why := triton_refusal(device.type)) is None:
        from pagoda_worker.layers.cuda import attend_triton  # imports Triton

        found["triton"] = attend_triton
    else:
        report.skip("attention triton", why)
    capability = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    has = {"triton": triton_refusal(device.type) is None, "torch_has_it": torch_has_flash()}
    if (why := flash_refusal(device.type, capability, torch.bfloat16, head_dim, **has)) is None:
        from pagoda_worker.layers.flash import attend_flash

        found["flash"] = attend_flash
    else:
        report.skip("attention flash", why)
    return found | BACKENDS


def compare(layer: Layer, device: torch.device, report: Report) -> None:
    """A table of all backends, its figures as rows of the result, and a check of each backend's errors."""
    attends = usable(device, layer.dim, report)
    timed = [each for load in layer.loads for each in _time(layer, load, attends, device)]
    report.line(f"{'attention of one layer, bf16':34} {'backend':8} {'time':>12} {'largest error':>14}")
    for each in timed:
        report.line(f"{each.load:34} {each.backend:8} {1e3 * each.seconds:9.3f} ms {each.largest_error:14.2e}")
        report.add_row(f"attention {each.load}", each.backend, "layer_ms", 1e3 * each.seconds, "ms")
        report.add_row(f"attention {each.load}", each.backend, "largest_error", each.largest_error, "absolute")
    for name in attends:
        worst = max(each.largest_error for each in timed if each.backend == name)
        report.add_check(Check(f"attention {name} as in float32", worst <= LARGEST_ERROR, f"errors up to {worst:.2g} of {LARGEST_ERROR:g}"))


def _time(
    layer: Layer, load: tuple[str, list[int], list[tuple[int, int]]], attends: dict[str, Attend], device: torch.device
) -> list[Timed]:
    name, decodes, chunks = load
    query, key_value, cache, batch = attention_case(
        decodes, chunks, heads=layer.heads, kv_heads=layer.kv_heads, dim=layer.dim, block=layer.block, seed=0, dtype=torch.bfloat16,
        device=device,
    )  # fmt: skip
    shape = AttentionShape(layer.dim**-0.5)
    exact = attend_eager(query.float(), key_value.float(), cache.float(), batch, shape)
    return [_time_one(each, name, attend, (query, key_value, cache, batch, shape), exact) for each, attend in attends.items()]


def _time_one(
    backend: str, load: str, attend: Attend, inputs: tuple[Tensor, Tensor, Tensor, AttentionBatch, AttentionShape], exact: Tensor
) -> Timed:
    error = float((attend(*inputs).float() - exact).abs().nan_to_num(float("inf")).max())
    return Timed(backend=backend, load=load, seconds=median_s(lambda: attend(*inputs), exact.device), largest_error=error)
