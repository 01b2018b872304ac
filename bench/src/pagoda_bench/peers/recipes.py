"""The list of systems: where each gets its interpreter, how it is started, and why it cannot run here. One entry is one row.

Called by the runner; starts nothing before it is asked.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.peers.cases import Model
from pagoda_bench.peers.driven import Driven
from pagoda_bench.peers.environment import environments, interpreter, versions
from pagoda_bench.peers.http_systems import Pagoda, sglang_server, vllm_server
from pagoda_bench.peers.system import PeerUnavailable, System
from pagoda_bench.random_llama import write_int8

Start = Callable[[Path, Model, Path, str], System]
"""Interpreter, model, scratch folder, device (cpu or cuda) → a system that is ready. Raises PeerUnavailable."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    system: str
    start: Start
    distributions: tuple[str, ...]
    """Whose versions the result tells; the first is the peer itself."""
    setting: str
    """How it ran, for the notes."""
    environment: str | None = None
    """Folder under bench/peers/ and of the virtual environment. None: the project's own packages, nothing is installed."""
    devices: tuple[str, ...] = ("cpu",)
    by_default: bool = True


def _vllm(python: Path, model: Model, scratch: Path, device: str) -> System:
    return vllm_server(python, model, scratch=scratch, cuda=device == "cuda")


def _vllm_own_cores(python: Path, model: Model, scratch: Path, device: str) -> System:
    return vllm_server(python, model, scratch=scratch, cuda=False, own_cores=True)


def _vllm_int8(python: Path, model: Model, scratch: Path, device: str) -> System:
    folder = environments() / "int8-models" / f"{model.name}-int8"
    write_int8(model.folder, folder)
    return vllm_server(python, model, scratch=scratch, cuda=device == "cuda", folder=folder)


def _pagoda(quantization: str | None) -> Start:
    return lambda python, model, scratch, device: Pagoda(model, scratch=scratch, quantization=quantization)


def _generate(python: Path, model: Model, scratch: Path, device: str) -> System:
    return Driven(python, "transformers_generate", model, scratch=scratch, device=device)


def _continuous(python: Path, model: Model, scratch: Path, device: str) -> System:
    return Driven(python, "transformers_continuous", model, scratch=scratch, device=device)


def _openvino(python: Path, model: Model, scratch: Path, device: str) -> System:
    with (model.folder / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    work = environments() / "openvino-models" / f"{model.name}-{digest[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    return Driven(python, "openvino", model, scratch=scratch, device=device, arguments={"work": str(work)})


VLLM_CPU = "server over HTTP, one thread bound to each core, VLLM_CPU_KVCACHE_SPACE=1, compiled by Inductor at each start"

RECIPES = (
    Recipe(
        system="pagoda",
        start=_pagoda(None),
        distributions=("pagoda-worker", "torch"),
        setting="`pagoda up`, router and worker over HTTP",
        devices=("cpu", "cuda"),
    ),
    *(
        Recipe(
            system=f"pagoda-{form}",
            start=_pagoda(form),
            distributions=("pagoda-worker", "torch"),
            setting=f"as pagoda, with engine.quantization {form}",
            devices=("cpu", "cuda"),
        )
        for form in ("int8", "int4")
    ),
    Recipe(
        system="transformers",
        start=_generate,
        distributions=("transformers", "torch"),
        setting="`generate` in its own process, one static batch, no HTTP",
        devices=("cpu", "cuda"),
    ),
    Recipe(
        system="transformers-continuous",
        start=_continuous,
        distributions=("transformers", "torch"),
        setting="continuous batching manager in its own process, sdpa, no HTTP",
        devices=("cpu", "cuda"),
    ),
    Recipe(
        system="vllm",
        environment="vllm-cpu",
        start=_vllm,
        distributions=("vllm", "torch", "transformers", "triton"),
        setting=VLLM_CPU,
    ),
    Recipe(
        system="vllm-int8",
        environment="vllm-cpu",
        start=_vllm_int8,
        distributions=("vllm", "torch", "transformers", "triton"),
        setting="as vllm, of a compressed-tensors checkpoint: int8 weights, a scale per channel, and int8 activations, a scale per token",
    ),
    Recipe(
        system="vllm-own-cores",
        environment="vllm-cpu",
        start=_vllm_own_cores,
        distributions=("vllm", "torch", "transformers", "triton"),
        setting="as vllm, but it chooses the cores itself: one of two computes, the other is for its scheduler",
        by_default=False,
    ),
    Recipe(
        system="vllm-without-triton",
        environment="vllm-cpu-without-triton",
        start=_vllm,
        distributions=("vllm", "torch", "transformers", "triton"),
        setting=VLLM_CPU,
        by_default=False,
    ),
    Recipe(
        system="openvino",
        environment="openvino",
        start=_openvino,
        distributions=("openvino-genai", "openvino", "optimum-intel"),
        setting="GenAI ContinuousBatchingPipeline in its own process, weights as exported without quantization, no HTTP",
    ),
    Recipe(
        system="vllm-cuda",
        environment="vllm-cuda",
        start=_vllm,
        distributions=("vllm", "torch"),
        setting="server over HTTP",
        devices=("cuda",),
    ),
    Recipe(
        system="sglang",
        environment="sglang-cuda",
        start=lambda python, model, scratch, device: sglang_server(python, model, scratch=scratch),
        distributions=("sglang", "torch"),
        setting="server over HTTP",
        devices=("cuda",),
    ),
)

NOT_SET_UP = {"llama.cpp": "it reads GGUF, and no conversion of the benchmark's models is written yet"}
"""Peers that a reader will miss; each is a line of the table with its reason."""


def python_for(recipe: Recipe, device: str) -> Path:
    """Installs when needed. Raises PeerUnavailable with the reason when this system cannot run on this device."""
    if device not in recipe.devices:
        raise PeerUnavailable(
            "needs a CUDA device, there is none here" if device == "cpu" else "its recipe is for CPUs; this machine has a CUDA device"
        )
    if recipe.environment is None:
        return Path(sys.executable)
    if device == "cuda" and importlib.util.find_spec(recipe.distributions[0]) is not None:
        return Path(sys.executable)
    return interpreter(recipe.environment)


def described(recipe: Recipe, python: Path) -> str:
    """One note: name, versions, setting."""
    found = versions(python, recipe.distributions)
    return f"{recipe.system}: {', '.join(f'{name} {version}' for name, version in found.items())}; {recipe.setting}"
