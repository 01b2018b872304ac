"""Where Triton kernels can run, and the small numbers that every launch needs. Called by the kernels' own files and by layers/.

Importing it does not import Triton: a machine with torch for CPUs only has none.
"""

import os
import shutil
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
"""Kernels take powers of two: the scale of the scores carries this factor."""


def interpreted() -> bool:
    """Triton runs kernels in numpy, on CPU tensors. It reads the variable when it is imported, so it must be set before."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def triton_is_there() -> bool:
    return find_spec("triton") is not None


@cache
def c_compiler() -> str | None:
    """What Triton builds its launchers with when it runs on a GPU; without one it can compile a kernel and not start it."""
    return next((found for name in (os.environ.get("CC"), "gcc", "clang") if name and (found := shutil.which(name))), None)


def launches(tensor: Tensor) -> bool:
    """Whether small kernels take the place of torch's operations on this tensor: on CUDA only. The interpreter is for tests of kernels."""
    return tensor.is_cuda and triton_is_there()


def paired(dtype: torch.dtype) -> bool:
    """Whether kernels may take two numbers of this type at once by PTX. The interpreter knows none."""
    return not interpreted() and dtype in (torch.bfloat16, torch.float16)


def upcast(dtype: torch.dtype) -> bool:
    """NOTE: Triton's interpreter multiplies the raw bits of bf16 (triton-lang/triton#11584): there, kernels compute in float32."""
    return interpreted() and dtype == torch.bfloat16


def quantized(cache: Tensor) -> bool:
    """A KV cache of rows with scales: layers/kv_cache.py says what lies where."""
    return cache.dtype.itemsize == 1


def scales_of(cache: Tensor) -> Tensor:
    """The same memory in bf16, which the scales of a quantized cache are; a plain cache's are not read."""
    return cache.view(torch.bfloat16) if quantized(cache) else cache


def power_of_two(least: int) -> int:
    """The smallest that is not below `least` ≥ 1."""
    return 1 << (least - 1).bit_length()


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors. In the interpreter 1: few programs, since each costs about 0.6 ms."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
