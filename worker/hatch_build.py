"""Compiles the CPU kernels when the package is built or installed. Without a compiler the package is built all the same, without them."""

import runpy
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        built = runpy.run_path(str(Path(self.root) / "src/pagoda_worker/native/build.py"))["build"]()
        if built and version != "editable":
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["artifacts"] += [str(path.relative_to(self.root)) for path in built]
        elif not built:
            print("pagoda-worker: no C++ compiler found; on CPUs the engine will compute by torch alone, more slowly", file=sys.stderr)
