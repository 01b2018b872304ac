"""Compiles the CPU kernels beside this file: `python -m pagoda_worker.native.build`. Runs when the package is built.

Needs a C++ compiler (CXX, else c++, g++ or clang++) and no headers but its own. One library for each instruction set, since one library
would merge what they have in common; names carry a hash of the sources, so that a stale one is never loaded. Knows no torch.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHITECTURES = {
    "amx": "sapphirerapids",
    "avx512_bf16": "cooperlake",
    "avx512_vnni": "cascadelake",
    "avx512": "skylake-avx512",
    "avx2": "haswell",
}
"""Instruction set → what the compiler may use."""
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti")
FOLDER = Path(__file__).parent


def library_path(isa: str) -> Path:
    """Where the library of exactly these sources is, or would be."""
    digest = hashlib.sha256(repr((ARCHITECTURES, FLAGS)).encode())
    for source in sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")]):
        digest.update(source.read_bytes())
    return FOLDER / f"kernels-{digest.hexdigest()[:16]}-{isa}.so"


def build() -> list[Path]:
    """The libraries, compiled unless they are there. None where there is no compiler; raises CalledProcessError when it fails."""
    libraries = {isa: library_path(isa) for isa in ARCHITECTURES}
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)
    if all(library.exists() for library in libraries.values()):
        return list(libraries.values())
    if compiler is None:
        return []
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        jobs = [
            subprocess.Popen(
                [compiler, *FLAGS, f"-march={march}", str(FOLDER / "kernels.cpp"), "-o", str(Path(folder) / libraries[isa].name)]
            )
            for isa, march in ARCHITECTURES.items()
        ]
        if failed := [job for job in jobs if job.wait() != 0]:
            raise subprocess.CalledProcessError(failed[0].returncode, failed[0].args)
        for stale in FOLDER.glob("kernels-*.so"):
            stale.unlink()
        for library in libraries.values():  # at once: a process that starts meanwhile finds a whole library or none
            (Path(folder) / library.name).rename(library)
    return list(libraries.values())


if __name__ == "__main__":
    built = [path.name for path in build()]
    print(
        "\n".join(built)
        or "no C++ compiler was found (CXX, c++, g++, clang++): on CPUs the engine will compute by torch alone, more slowly",
        file=sys.stderr,
    )
