"""The device under check: its name, its measured bandwidth and matrix peak, its memory. The only module here that asks CUDA anything.

Called by the check before engines are timed. Runs on a CPU too, for dry runs.
"""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from pagoda_worker.gpu_check.roofline import DeviceSpeed

WARM = 3
"""Lazy loading of kernels, clocks going up."""
REPEATS = 10


def measure_speed(device: torch.device, *, copy_bytes: int, matrix: int) -> DeviceSpeed:
    """Medians. `copy_bytes` and [matrix, matrix] bf16 must be far larger than the device's caches to mean anything."""
    return DeviceSpeed(bytes_per_s=2 * copy_bytes / _copy_s(copy_bytes, device), flops_per_s=2 * matrix**3 / _product_s(matrix, device))


def _copy_s(copy_bytes: int, device: torch.device) -> float:
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return median_s(lambda: target.copy_(source), device)


def _product_s(matrix: int, device: torch.device) -> float:
    left, right = torch.randn(2, matrix, matrix, device=device).to(torch.bfloat16)
    out = torch.empty_like(left)
    return median_s(lambda: torch.mm(left, right, out=out), device)


def median_s(operation: Callable[[], object], device: torch.device) -> float:
    warm, repeats = (WARM, REPEATS) if device.type == "cuda" else (0, 1)  # a dry run's figures mean nothing
    for _ in range(warm):
        operation()
    return statistics.median(_seconds(operation, device) for _ in range(repeats))


def replayed_s(operation: Callable[[], object], device: torch.device) -> float:
    """As `median_s`, without the host: its launches are captured once and replayed. On a CPU, a dry run, it runs once."""
    if device.type != "cuda":
        return _seconds(operation, device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        operation()  # kernels are compiled before, not while capturing
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operation()
    return median_s(graph.replay, device)


def _seconds(operation: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        operation()
        return time.perf_counter() - began
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    operation()
    after.record()
    after.synchronize()
    milliseconds: float = before.elapsed_time(after)
    return milliseconds / 1e3


def release(device: torch.device) -> None:
    """What no object holds any more goes back to the device: the next engine plans its cache by what the device says is free."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most that tensors held since `release`. None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def describe(device: torch.device) -> dict[str, Any]:
    """The `hardware` of a result file."""
    facts: dict[str, Any] = {"device": "cpu", "machine": platform.machine(), "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
        }
    return facts | {"cuda": torch.version.cuda, "packages": {name: _version(name) for name in ("torch", "triton", "numpy", "safetensors")}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
