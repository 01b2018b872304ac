"""Container images made without a builder or a registry: a docker-archive tar of one layer. The cluster's own are the pause and CoreDNS."""

import hashlib
import io
import json
import platform
import struct
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.errors import DevclusterError

PAUSE = "localhost/pagoda-devcluster/pause:1"
COREDNS = "localhost/pagoda-devcluster/coredns:1"

# pause(2) for ever. As machine code, because a machine that runs the cluster need not have a compiler.
_PAUSE_CODE = {
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),  # mov eax, 34; syscall; jmp back
    # ppoll(NULL, 0, NULL, NULL), as there is no pause there: mov x8, #73; mov x0..x3, #0; svc #0; b back
    "aarch64": (183, bytes.fromhex("280980d2 000080d2 010080d2 020080d2 030080d2 010000d4 faffff17")),
}


def pause_program(machine: str) -> bytes:
    """A static ELF executable of under 200 bytes: file header, one loadable segment, code."""
    if machine not in _PAUSE_CODE:
        raise DevclusterError(f"no pause program for {machine}: the cluster runs on {' and '.join(_PAUSE_CODE)}")
    number, code = _PAUSE_CODE[machine]
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, number, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return header + segment + code


def write_pause(path: Path) -> None:
    write(path, PAUSE, {"/pause": pause_program(platform.machine())}, entrypoint=["/pause"])


def write_program(path: Path, name: str, program: Path, target: str) -> None:
    """An image of one program, with the shared libraries it loads where it loads them from (none when it is static)."""
    files = {target: program.read_bytes()} | {library: Path(library).read_bytes() for library in _libraries(program)}
    write(path, name, files, entrypoint=[target])


def write(path: Path, name: str, files: Mapping[str, bytes], entrypoint: Sequence[str]) -> None:
    layer = _tar({file.lstrip("/"): (content, 0o755) for file, content in files.items()})
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "User": "65534:65534"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    archive = {"config.json": json.dumps(config).encode(), "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    path.write_bytes(_tar({file: (content, 0o644) for file, content in archive.items()}))


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def _libraries(program: Path) -> list[str]:
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if listed.returncode != 0:  # "not a dynamic executable"
        return []
    return [word for line in listed.stdout.splitlines() for word in line.split() if word.startswith("/")]
