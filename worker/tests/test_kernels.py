"""Triton's kernels without a GPU: compiled for GPUs here, and run in the interpreter in a process of its own, since Triton reads the
variable when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.errors import ConfigError
from pagoda_worker.gpu_check.shapes import TINY
from pagoda_worker.kernels.ahead import MARKS, SHARED_LIMITS, builds, capabilities, compile_for
from pagoda_worker.kernels.build import Build
from pagoda_worker.kernels.decode_attention import decode_splits

DOCUMENT = Path(__file__).parents[2] / "docs" / "kernels.md"
INTERPRETED = Path(__file__).parent / "interpreted"


@pytest.mark.timeout(600)
def test_kernels_equal_their_references_in_the_interpreter():
    """All files in one process: to start one costs as much as the tests of a file."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=INTERPRETED.parents[1], capture_output=True, text=True, timeout=590, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


CHECKED = [
    build
    for build in builds()
    if build.name.endswith("Llama-3.1-8B")
    or build.name.startswith(("sample", "prefill Llama-3.1-8B, KV int8", "W8A8 8192", "W4A16 1 ", "W4A16 256", "W8A16 1 "))
    or build.name == "rotary and cache"
]
"""Each takes seconds; the table has the others."""


@pytest.mark.parametrize("build", CHECKED, ids=lambda build: build.name)
def test_kernels_compile_for_gpus_without_spilling(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for capability in capabilities(build):
        made = compile_for(build, capability)
        assert made.spilled_bytes == 0
        assert made.registers <= 255
        assert made.shared_bytes <= SHARED_LIMITS[capability]
        if build.name.startswith(("decode Llama", "prefill Llama")):
            assert made.matrix == ("wgmma" if build.name.startswith("prefill") and capability == 90 else "mma")
        if build.name.startswith(("W8A8", "W4A16", "W8A16")):
            assert made.matrix == ("mma" if capability == 80 or " 1 x" in build.name else "wgmma"), "tensor cores, also for one row"


def test_the_table_of_the_document_has_every_kernel_within_its_limits():
    rows = [line.split("|")[1:-1] for line in DOCUMENT.read_text().split(MARKS[0])[1].split(MARKS[1])[0].splitlines()[2:]]
    named = [(name.strip(), target.strip()) for name, target, *_ in rows]
    assert named == [(build.name, f"sm_{capability}") for build in builds() for capability in capabilities(build)]
    for _, target, shared, registers, spilled, _ in rows:
        assert int(shared) <= SHARED_LIMITS[int(target.strip()[3:])]
        assert int(registers) <= 255
        assert int(spilled) == 0


@pytest.mark.parametrize(
    ("rows", "kv_heads", "context", "splits"),
    [(1, 8, 512, 2), (1, 8, 8192, 16), (1, 8, 100, 1), (64, 8, 8192, 1), (8, 8, 8192, 8), (1, 1, 1 << 20, 16)],
)
def test_few_rows_are_split_and_many_are_not(rows: int, kv_heads: int, context: int, splits: int):
    assert decode_splits(rows, kv_heads, context, processor_count=132) == splits


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_triton_is_refused_on_a_cpu_with_what_to_do(tmp_path: Path):
    TINY.write_config(tmp_path / "model")
    config = EngineConfig(model_dir=tmp_path / "model", random_weights=True, attention="triton", max_model_len=64, max_running=2)
    with pytest.raises(ConfigError, match=r"attention triton needs a CUDA device.*leave attention at auto"):
        Engine(config)
