"""Generates the typed gRPC stubs of one .proto file into a package folder: `python proto.py FILE.proto FOLDER`.

Called by `make proto` for the router's and the worker's `wire` packages, and by the test that fails when either is stale. protoc writes
absolute imports (`import worker_pb2`); inside a package they must name it, which is the only edit made here.
"""

import re
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc


def generate(proto: Path, folder: Path) -> list[Path]:
    """Writes `NAME_pb2.py`, `NAME_pb2_grpc.py` and their `.pyi` into `folder`; returns their paths.

    Raises RuntimeError when protoc refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    well_known = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    scripts = Path(sys.executable).parent  # not on PATH when the environment is not activated
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    status = protoc.main(["protoc", f"-I{proto.parent}", f"-I{well_known}", *plugins, *outputs, str(proto)])
    if status != 0:
        raise RuntimeError(f"protoc refused {proto}: exit status {status}")
    written = sorted(folder.glob(f"{proto.stem}_pb2*"))
    package = ".".join(folder.resolve().parts[-2:])
    for path in written:
        text = path.read_text()
        text = re.sub(rf"^import ({proto.stem}_pb2)( as \S+)?$", rf"from {package} import \1\2", text, flags=re.MULTILINE)
        path.write_text(text)
    return written


if __name__ == "__main__":
    generate(Path(sys.argv[1]), Path(sys.argv[2]))
