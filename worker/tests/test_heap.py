"""Memory that a step frees is there for the next one: counted in page faults, not in time."""

import subprocess
import sys

LAYERS_OF_AN_ENGINE = """
import resource
import torch
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine import Engine
from pagoda_worker.settings.sources import BUILTIN_DIR

def new(columns):
    return torch.empty(1024, columns, dtype=torch.bfloat16).fill_(1)

def layers():
    residual, x = new(1024), new(1024)
    for _ in range(8):
        heads, x = new(2048), new(1024)
        residual, x = new(1024), new(1024)
        gate = new(4096)
        residual, x = new(1024), new(1024)

engine = Engine(EngineConfig(model_dir=BUILTIN_DIR / "tiny", device="cpu", max_running=2))
for _ in range(8):  # the heap has its size after one to three of them, by what else lies in its gaps
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    layers()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_with_an_engine_what_a_layer_freed_is_not_taken_anew_from_the_kernel():
    done = subprocess.run([sys.executable, "-c", LAYERS_OF_AN_ENGINE], capture_output=True, text=True, check=True)
    faults = [int(line) for line in done.stdout.splitlines()]
    assert min(faults) < 100, "thousands each time where freed memory goes back"
