"""The compiled CPU kernels as Python functions over tensors' memory. Called by layers/native.py, which knows when they apply.

Owns the choice of instruction set. ctypes and not an extension of torch: nothing of torch's C++ is
compiled against, so that the library builds in seconds and outlives torch's versions.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_worker.native.build import library_path

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""Linux on x86-64: a process asks once before it may use AMX's tiles."""
_NEEDS = {
    "amx": {"amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_vnni"},
    "avx512_bf16": {"avx512_bf16", "avx512_vnni", "avx512bw", "avx512vl", "avx512dq"},
    "avx512_vnni": {"avx512_vnni", "avx512bw", "avx512vl", "avx512dq"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx2": {"avx2", "fma"},
}
"""Best first; flags as /proc/cpuinfo names them."""
_CONSTANTS = ("panel", "most_parts", "past_the_end", "adapters_in_bytes", "ground_seats_bytes", "ground_rank_bytes")
_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "threads": [_SIZE],
    "linear": [_POINTER] * 5 + [_SIZE] * 6 + [_POINTER] * 2,
    "linear_quantized": [_POINTER] * 7 + [_SIZE] * 9 + [_POINTER] * 2,
    "linear_fp8": [_POINTER] * 6 + [_SIZE] * 7 + [_POINTER] * 2,
    "gather": [_POINTER, *[_SIZE] * 3, _POINTER, _POINTER, _SIZE, _POINTER],
    "step": [_POINTER, _FLOAT, _FLOAT, *[_POINTER, _SIZE] * 3, *[_POINTER] * 3],
    "draft": [_POINTER, _FLOAT, _FLOAT, _POINTER, _POINTER, _SIZE, *[_POINTER] * 4, _SIZE, _SIZE, _FLOAT, *[_POINTER] * 3],
    **{
        f"{name}_{kind}": arguments
        for kind in ("f32", "bf16")
        for name, arguments in {
            "all_reduce": [_POINTER, *[_SIZE] * 3, _POINTER, _SIZE, _POINTER],
            "rms_norm": [_POINTER] * 3 + [_SIZE] * 3 + [_FLOAT],
            "add_deltas": [_POINTER] * 4 + [_SIZE] * 3,
        }.items()
    },
    **{
        f"{name}_{kind}": arguments
        for kind in ("f32", "f32_int8", "f32_fp8", "bf16", "bf16_int8", "bf16_fp8")
        for name, arguments in {
            "rotate_and_store": [_POINTER] * 7 + [_SIZE] * 6 + [_FLOAT],
            "decode_attention": [_POINTER] * 5 + [_SIZE] * 9 + [_FLOAT],
            "prefill_attention": [_POINTER] * 6 + [_SIZE] * 9 + [_FLOAT],
        }.items()
    },
}


@dataclass(frozen=True, slots=True)
class Library:
    isa: str
    functions: dict[str, Callable[..., None]]
    constants: dict[str, int]
    """By which callers lay memory out, as kernels.cpp names them."""

    def __getitem__(self, name: str) -> Callable[..., None]:
        return self.functions[name]

    def use_threads(self, count: int) -> None:
        """Of the library's own team, see parallel.h."""
        self["threads"](count)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def usable(flags: frozenset[str]) -> list[str]:
    """Instruction sets that this machine has, best first. Empty: none that kernels are compiled for."""
    return [isa for isa, needed in _NEEDS.items() if needed <= flags]


def load_library(isa: str | None = None) -> Library | None:
    """None: not compiled, or this CPU has too little. `isa`: this one instead of the best."""
    possible = usable(cpu_flags())
    if isa is None and possible[:1] == ["amx"] and not _tiles_allowed():
        possible = possible[1:]
    chosen = isa if isa in possible else next(iter(possible), None) if isa is None else None
    if chosen is None or not library_path(chosen).exists() or (chosen == "amx" and not _tiles_allowed()):
        return None
    library = ctypes.CDLL(str(library_path(chosen)))
    functions: dict[str, Callable[..., None]] = {}
    for name, arguments in _SIGNATURES.items():
        function: Any = getattr(library, f"pagoda_{name}")
        function.argtypes, function.restype = arguments, None
        functions[name] = function
    return Library(chosen, functions, {name: ctypes.c_int64.in_dll(library, f"pagoda_{name}").value for name in _CONSTANTS})


def _tiles_allowed() -> bool:
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)
