"""Which operators a model computes with: from the settings and what the device has. Called by loading; knows no model but its head size.

Whatever is asked for and cannot run here is refused with what to write instead; auto says in the log what it could not take.
"""

import inspect
import logging

import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.errors import ConfigError
from pagoda_worker.kernels.launch import c_compiler, interpreted, triton_is_there
from pagoda_worker.layers.attention import BACKENDS
from pagoda_worker.layers.invariant import InvariantNativeOperators, InvariantOperators
from pagoda_worker.layers.native import NativeOperators
from pagoda_worker.layers.operators import Operators
from pagoda_worker.native.library import load_library

log = logging.getLogger(__name__)

FP8_LEAST_CAPABILITY = (8, 9)
"""Ada's: Triton converts to and from e4m3 there and on later ones."""
FLASH_LARGEST_HEAD = 256
FLASH_LEAST_CAPABILITY = 8
"""The major compute capability: Ampere's."""


def operators_for(config: EngineConfig, device: torch.device, *, dtype: torch.dtype, head_dim: int) -> Operators:
    """After the number of threads is set: the CPU's kernels use as many. Raises ConfigError."""
    library = load_library() if device.type == "cpu" else None
    if config.attention == "native" and library is None:
        raise ConfigError(
            "attention native is the CPU's own kernel, and it is not here: it needs device cpu, at least AVX2, and a C++ compiler when the "
            "worker is installed; leave attention at auto"
        )
    if config.kv_dtype == "fp8" and device.type == "cuda" and (why := fp8_cache_refusal(torch.cuda.get_device_capability(device))):
        raise ConfigError(why)
    if config.attention == "flash":
        capability = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
        has = {"triton": triton_refusal(device.type) is None, "torch_has_it": torch_has_flash()}
        if (why := flash_refusal(device.type, capability, dtype, head_dim, **has)) is not None:
            raise ConfigError(why)
        from pagoda_worker.layers.flash import FlashOperators  # imports Triton, as the next

        return FlashOperators()
    if not config.batch_invariant and config.attention in ("auto", "triton") and _takes_triton(config.attention, device):
        from pagoda_worker.layers.cuda import TritonOperators  # not before: it imports Triton, which is not everywhere

        return TritonOperators()
    attend = BACKENDS.get(config.attention)
    if library is None:
        return InvariantOperators() if config.batch_invariant else Operators(attend or BACKENDS["sdpa"])
    library.use_threads(torch.get_num_threads())
    return InvariantNativeOperators(library) if config.batch_invariant else NativeOperators(library, attend)


def flash_refusal(device_type: str, capability: int, dtype: torch.dtype, head_dim: int, *, triton: bool, torch_has_it: bool) -> str | None:
    """Why attention flash cannot run, and what to write instead; None: it can, whatever the window. `capability`: the major one, 0 without
    a GPU."""
    if device_type != "cuda":
        return f"attention flash needs a CUDA device (this one is {device_type}): leave attention at auto"
    if not torch_has_it:
        return (
            f"attention flash needs torch.nn.attention.varlen; torch {torch.__version__} has none that it can use: leave attention at auto"
        )
    if not triton:
        return "attention flash decodes with a kernel that needs the package triton and gcc: install them, or set attention to sdpa"
    if capability < FLASH_LEAST_CAPABILITY:
        return (
            f"attention flash needs a GPU of compute capability 8.0 or newer (this one is {capability}.x): set attention to triton or sdpa"
        )
    if dtype not in (torch.bfloat16, torch.float16):
        return (
            f"attention flash computes in bf16 or fp16, not {str(dtype).removeprefix('torch.')}: set dtype to bf16, or attention to triton"
        )
    if head_dim > FLASH_LARGEST_HEAD or head_dim % 8:
        return f"attention flash takes heads of up to 256 in multiples of 8, this model's have {head_dim}: set attention to triton or sdpa"
    return None


def fp8_cache_refusal(capability: tuple[int, int]) -> str | None:
    """Why a GPU keeps no keys and values in fp8, and what to write instead; None: it does."""
    if capability >= FP8_LEAST_CAPABILITY:
        return None
    return (
        f"kvCache.dtype fp8 needs a GPU of compute capability 8.9 or newer (this one is {'.'.join(map(str, capability))}): "
        f"set kvCache.dtype to int8"
    )


def torch_has_flash() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def triton_refusal(device_type: str) -> str | None:
    """Why Triton's kernels cannot run on this device, and what to do; None: they can."""
    if not triton_is_there() or (device_type != "cuda" and not interpreted()):
        return (
            f"attention triton needs a CUDA device and the package triton (device is {device_type}): leave attention at auto, or set "
            f"TRITON_INTERPRET=1 to run its kernels, slowly, on a CPU"
        )
    if device_type == "cuda" and c_compiler() is None:
        return "attention triton needs a C compiler (CC, gcc, clang) to start its kernels: install gcc, or set attention to sdpa"
    return None


def _takes_triton(attention: str, device: torch.device) -> bool:
    """Raises ConfigError when it is asked for where it cannot run."""
    why = triton_refusal(device.type)
    if attention == "triton" and why is not None:
        raise ConfigError(why)
    if device.type == "cuda" and why is not None:
        log.warning("attention auto is sdpa here, which is slower: %s", why)
    return why is None and (device.type == "cuda" or attention == "triton")
